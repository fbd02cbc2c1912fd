"""Replays a saved session: generates its replies again, each from what stands before it in the file.

    for reply in replay(engine, "sessions/sess_….jsonl"):
        print(reply.status)      # "same", "different" or "unknown" (other context)

On the machine that made it, with the same precision, replies are equal bit by bit. Elsewhere sums differ in their last
bits, and two tokens with nearly the same score may swap.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from speechgpt2.conversation import check_same_model, reply_content, to_patches
from speechgpt2.engine.engine import Engine
from speechgpt2.engine.recording import options_from_dict, restore_session, settings_from_dict
from speechgpt2.engine.session import Session
from speechgpt2.engine.slot import Slot
from speechgpt2.sessions.compare import ReplayedReply, first_difference
from speechgpt2.sessions.entries import Header, PatchBlock, Resumed, SavedSession, TurnBlock, digest
from speechgpt2.sessions.session_file import read_entries


def replay(engine: Engine, path: Path) -> Iterator[ReplayedReply]:
    """Yield the replies of a saved session in their order.

    Args:
        engine: An engine that is not started.
        path: The session's file.

    Raises:
        UserError: The file is damaged, or another model made it.
    """
    entries = read_entries(path)
    header = next(entries, None)
    assert header is None or isinstance(header, Header)
    if header is None:
        return
    check_same_model(header, "engine", engine.identity.fingerprints)
    before, seen, replayed = SavedSession(header), set[int](), None
    for entry in entries:
        if isinstance(entry, Resumed) and replayed is not None:
            replayed.close()
            replayed = None
        if isinstance(entry, TurnBlock) and entry.reply is not None and entry.number not in seen:
            seen.add(entry.number)
            replayed = replayed or _open(engine, before)
            yield _generate_again(engine, replayed, before, entry)
        before.add(entry)
    if replayed is not None:
        replayed.close()


def _open(engine: Engine, before: SavedSession) -> Session:
    settings = replace(settings_from_dict(before.settings), paced=False)
    session = engine.open(settings, before)
    engine.step()
    return session


def _generate_again(engine: Engine, session: Session, before: SavedSession, turn: TurnBlock) -> ReplayedReply:
    slot, reply_info, said = session.slot, turn.reply, turn.text or ""
    assert slot is not None and reply_info is not None
    slot.settings = replace(settings_from_dict(before.settings), paced=False)
    restore_session(before, slot.settings, slot.history, slot.styles)
    if digest(before.context) != reply_info.context:
        return ReplayedReply(turn.number, "unknown", said)
    session.respond(options_from_dict(reply_info.options))
    while session.replying:
        engine.step()
        while session.event_queue.get() is not None:
            pass
    saved_turn, replayed_turn = reply_info.generated or turn.patches, _last_turn(slot)
    position = first_difference(saved_turn, replayed_turn, cut=reply_info.generated is not None)
    body = to_patches(replayed_turn.part(turn.separator, len(replayed_turn.text)))
    content = reply_content(engine.prompt, body, turn.user_spoke)
    return ReplayedReply(turn.number, "same" if position is None else "different", said, content.text, position)


def _last_turn(slot: Slot) -> PatchBlock:
    span = slot.history.last
    assert span is not None
    return slot.history.context.patch_block(span.start, span.stop)
