"""Saved conversations of `sg2 chat`: its options `--sessions` and `--resume`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from speechgpt2.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from speechgpt2.chat import Conversation
    from speechgpt2.sessions.entries import SavedSession
    from speechgpt2.sessions.session_file import SessionFile
    from speechgpt2.types import Tool

Sessions = Annotated[
    Path | None,
    typer.Option(
        "--sessions",
        help="Save the conversation in this folder (sg2 sessions), which then holds what is said.",
        metavar="FOLDER",
    ),
]
Resume = Annotated[
    str | None,
    typer.Option(help="Resume this conversation of the folder --sessions, in its mode and voice.", metavar="ID"),
]


def resume_session(
    folder: Path | None, id: str | None, options_fixed_by_session: dict[str, object]
) -> tuple[SessionFile | None, SavedSession | None]:
    """Open the conversation to resume, if there is one.

    Args:
        folder: The folder of saved conversations.
        id: The conversation's id.
        options_fixed_by_session: The command's values of the options that the conversation began with, by name.

    Returns:
        The conversation's file, and what it says.

    Raises:
        UserError: There is no such conversation, it is damaged, or one of those options has a value.
    """
    if id is None:
        return None, None
    if folder is None:
        raise UserError("--resume needs --sessions, the folder of the conversation")
    if given := [name for name, value in options_fixed_by_session.items() if value is not None]:
        raise UserError(f"--resume keeps what the conversation began with: leave out --{given[0]}")
    from speechgpt2.sessions.entries import Resumed
    from speechgpt2.sessions.store import SessionFolder

    file, saved = SessionFolder(folder).resume(id)
    file.write(Resumed(round(time.time(), 3)))
    return file, saved


def new_session(folder: Path, conversation: Conversation, model: str) -> SessionFile:
    """Begin to save a conversation; print its id on stderr."""
    from speechgpt2.sessions.store import SessionFolder, new_session_id

    id = new_session_id()
    file = SessionFolder(folder).create(conversation.header(id, model))
    print(f"session: {id}", file=sys.stderr, flush=True)
    return file


def check_same_tools(before: Sequence[Tool], now: Sequence[Tool]) -> None:
    """Check that a conversation is resumed with the tools that its system prompt lists. Raises `UserError` if not."""
    if tuple(before) != tuple(now):
        names = ", ".join(tool.name for tool in before) or "none"
        raise UserError(f"the conversation began with other tools ({names}): give the same --tools and --kb")


def saving(
    answers: Iterator[np.ndarray], conversation: Conversation, file: SessionFile | None, saved: SavedSession | None
) -> Iterator[np.ndarray]:
    """Yield the answers; save each turn as soon as it is answered.

    Args:
        answers: The answers.
        conversation: The conversation.
        file: Where it is saved; None: nowhere.
        saved: What the file says already.
    """
    if file is None:
        yield from answers
        return
    from speechgpt2.saved_chat import ConversationWriter

    writer = ConversationWriter(conversation, file, saved)
    try:
        for answer in answers:
            writer.write_new()
            yield answer
    finally:
        writer.close()
