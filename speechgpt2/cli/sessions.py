"""`sg2 sessions`: saved conversations of `sg2 chat` and `sg2 serve`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from speechgpt2.cli.common import CODEC_HELP, MODEL_HELP, print_table, print_warning, spinner
from speechgpt2.cli.options import LoadOptions, with_shared_options
from speechgpt2.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from speechgpt2.sessions.compare import ReplayedReply
    from speechgpt2.sessions.entries import SavedSession

Folder = Annotated[Path, typer.Option("--sessions", help="The folder of saved sessions.", metavar="FOLDER")]
Id = Annotated[str, typer.Argument(help="The session's id (sg2 sessions list).", metavar="ID")]
Ids = Annotated[list[str], typer.Argument(help="Ids of sessions (sg2 sessions list).", metavar="ID...")]
DEFAULT = Path("sessions")
MAX_WORDS = 24  # characters of a session's first question


def show_list(sessions: Folder = DEFAULT) -> None:
    """List the saved sessions, the latest first: id, time, number of turns, seconds of speech, model, first words."""
    from speechgpt2.sessions.export import messages
    from speechgpt2.sessions.store import SessionFolder

    store, rows = SessionFolder(sessions), []
    if not sessions.is_dir():
        raise UserError(f"{sessions}: no such folder; sg2 chat --sessions and sg2 serve --sessions make one")
    for id in store.ids():
        try:
            saved = store.load(id)
        except UserError as error:
            print_warning(str(error))
            continue
        found = messages(saved)
        seconds = sum(message.get("seconds", 0) for message in found)
        first = next((message["content"] for message in found if message["role"] == "user"), "")
        time = datetime.fromtimestamp(saved.updated_at).isoformat(" ", "minutes")
        rows.append(
            (id, time, str(len(found)), f"{seconds:.1f}", saved.header.model, " ".join(first.split())[:MAX_WORDS])
        )
    print_table(("session", "time", "turns", "seconds", "model", "begins"), rows)


def show(id: Id, sessions: Folder = DEFAULT) -> None:
    """Print the turns of a session: who, what, and how long it was spoken."""
    from speechgpt2.sessions.export import messages

    saved = load(sessions, id)
    print(f"{id}: made with {saved.header.model}, {len(saved.turns)} turns, {len(saved.forgotten)} of them forgotten")
    if saved.incomplete:
        print_warning("the last line of the file was cut off and does not count")
    for message in messages(saved):
        spoken = f" ({message['seconds']:.1f} s{', cut' if message.get('cut') else ''})" if "seconds" in message else ""
        print(f"{message['role']}{spoken}: {message['content']}")
        for call in message.get("tool_calls", ()):
            print(f"  calls {call['name']}({call['arguments']})")


def export(
    ids: Ids,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to export to.", metavar="FOLDER")],
    sessions: Folder = DEFAULT,
    with_audio: Annotated[bool, typer.Option("--audio/--no-audio", help="Whether to decode the speech.")] = True,
    codec: Annotated[
        str | None, typer.Option(help=f"{CODEC_HELP} [default: the session's model]", metavar="NAME")
    ] = None,
) -> None:
    """Export sessions as JSON lines with audio, in the format of dialogues to train on."""
    from speechgpt2.sessions.export import FILE
    from speechgpt2.sessions.export import export as export_session

    decoders: dict[tuple[str, str], Callable[[np.ndarray], np.ndarray]] = {}
    for saved in [load(sessions, id) for id in ids]:
        key = codec or saved.header.model, saved.header.codec_fingerprint
        if with_audio and key not in decoders:
            with spinner(f"loading {key[0]}"):
                decoders[key] = decoder(*key)
        found = export_session(saved, out, decoders.get(key))
        print(f"{saved.header.id}: {len(found)} turns → {out / FILE}")


def delete(ids: Ids, sessions: Folder = DEFAULT) -> None:
    """Delete sessions."""
    from speechgpt2.sessions.store import SessionFolder

    for id in ids:
        SessionFolder(sessions).delete(id)
        print(f"deleted: {id}")


@with_shared_options
def replay(
    id: Id,
    sessions: Folder = DEFAULT,
    model: Annotated[str | None, typer.Option(help=f"{MODEL_HELP} [default: the session's]", metavar="NAME")] = None,
    *,
    loading: LoadOptions,
) -> None:
    """Generate the replies of a session again, each from what stood before it, and compare them.

    On the machine and with the precision that made it, they are equal. The exit code is 1 if one differs.
    """
    from speechgpt2.sessions.store import SessionFolder

    saved, path = load(sessions, id), SessionFolder(sessions).path(id)
    counts = {"same": 0, "different": 0, "unknown": 0}
    for reply in replies(saved, path, loading, model or saved.header.model):
        counts[reply.status] += 1
        print(f"{reply.number:4d}  {reply.status}: {reply.text}", flush=True)
        if reply.status == "different":
            print(f"      now, from patch {reply.differs_at} on: {reply.replayed_text}")
        if reply.status == "unknown":
            print("      turns before it were deleted, so it cannot be generated again")
    print(", ".join(f"{count} {status}" for status, count in counts.items()))
    if counts["different"]:
        raise typer.Exit(1)


def replies(saved: SavedSession, path: Path, loading: LoadOptions, model: str) -> Iterator[ReplayedReply]:
    """Return the replayed replies, from what made the session."""
    if saved.header.made_by == "chat":
        from speechgpt2.saved_chat import replay as replay_chat

        return replay_chat(loading.load(model), path)
    from speechgpt2.cli.common import engine_config, torch_device
    from speechgpt2.engine.engine import Engine
    from speechgpt2.engine.replay import replay as replay_engine

    device, setup = torch_device(loading.device), saved.header.setup
    with spinner(f"loading {model}"):
        # With as many slots, rows are computed in batches of the same size, and sums do not differ.
        config = engine_config(device, slots=setup.get("slots", 8), context=setup.get("context", 1024))
        engine = Engine.load(loading.sources(model), device, config)
    return replay_engine(engine, path)


def load(sessions: Path, id: str) -> SavedSession:
    """Read a session. Raises `UserError` if there is none, or it is damaged."""
    from speechgpt2.sessions.store import SessionFolder

    return SessionFolder(sessions).load(id)


def decoder(name: str, codec_fingerprint: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return what decodes codes `[T, K]` to samples `[N]`.

    Raises:
        UserError: It is another codec than that of the codes.
    """
    import torch

    from speechgpt2.codec.model import Codec
    from speechgpt2.conversation import codec_fingerprint as fingerprint_of
    from speechgpt2.types import FRAME_SIZE

    codec = Codec.from_pretrained(name)
    if fingerprint_of(codec) != codec_fingerprint:
        raise UserError(f"the codec of {name} is another one than that of the sessions; give theirs as --codec")

    def decode(codes: np.ndarray) -> np.ndarray:
        delay, values = codec.config.delay, torch.from_numpy(codes)
        # The decoder's output trails its input by `delay` samples: repeated frames push the end out.
        values = torch.cat([values, values[-1:].expand(-(-delay // FRAME_SIZE), -1)])
        return codec.decode(values[None])[0].numpy()[delay : delay + len(codes) * FRAME_SIZE]

    return decode
