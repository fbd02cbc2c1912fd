"""Exports saved sessions: a line for each in `dialogues.jsonl`, and the audio of every spoken turn.

    {"id": "sess_1", "model": "mini", "messages": [
      {"role": "user", "content": "What's three plus five?", "seconds": 1.2, "audio": "sess_1/001-user.wav"}]}

This is the format of dialogues to train on (`corpus.dialogue_file`). What the model has forgotten is exported, too, but
not what was deleted.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from speechgpt2 import audio, hub
from speechgpt2.errors import UserError
from speechgpt2.sessions.entries import SavedSession, TurnBlock
from speechgpt2.types import FRAME_RATE

FILE = "dialogues.jsonl"
Decode = Callable[[np.ndarray], np.ndarray]


def export(saved: SavedSession, folder: Path, decode: Decode | None) -> list[dict[str, Any]]:
    """Add a session to an export.

    Args:
        saved: The session.
        folder: The folder of the export, which is made if need be.
        decode: Decodes codes `[T, K]` to `[N]` float32 at 24 kHz; None: no audio is written.

    Returns:
        The messages.

    Raises:
        UserError: The export holds this session already, or cannot be written.
    """
    id, path = saved.header.id, folder / FILE
    if path.exists() and any(json.loads(line).get("id") == id for line in path.read_text("utf-8").splitlines()):
        raise UserError(f"{path} already holds session {id}; choose another folder")
    (folder / id if decode else folder).mkdir(parents=True, exist_ok=True)
    found = messages(saved)
    for message, turn in zip(found, saved_turns(saved), strict=True):
        codes = turn.speech(saved.header.no_speech)
        if decode is not None and len(codes):
            message["audio"] = f"{id}/{turn.number:03d}-{turn.role}.wav"
            audio.save(folder / message["audio"], decode(codes))
    line = json.dumps({"id": id, "model": saved.header.model, "messages": found}, ensure_ascii=False) + "\n"
    before = path.read_bytes() if path.exists() else b""
    hub.write_atomically(path, lambda scratch: scratch.write_bytes(before + line.encode()))
    return found


def saved_turns(saved: SavedSession) -> list[TurnBlock]:
    """Return the turns that were not deleted, in their order."""
    return [saved.turns[number] for number in sorted(saved.turns)]


def messages(saved: SavedSession) -> list[dict[str, Any]]:
    """Return the turns as messages, with texts and times but without audio."""
    turns = saved_turns(saved)
    found = []
    for turn, after in zip(turns, [*turns[1:], None], strict=True):
        text = turn.text
        if turn.role == "user" and turn.user_spoke and after is not None:
            text = after.transcript or text  # the reply begins with it
        seconds = len(turn.speech(saved.header.no_speech)) / FRAME_RATE
        when = datetime.fromtimestamp(turn.at, timezone.utc).isoformat(timespec="seconds")
        message: dict[str, Any] = {"role": turn.role, "content": text or "", "at": when}
        message |= {"seconds": seconds} if seconds else {}
        message |= {"cut": True} if turn.reply is not None and turn.reply.played is not None else {}
        if turn.calls:
            message["tool_calls"] = [{"name": call.name, "arguments": call.arguments} for call in turn.calls]
        found.append(message)
    return found
