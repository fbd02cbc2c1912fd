"""Conversations that the server saves, by the ids that a visitor's browser remembers.

    talks = SavedTalks(ServerAddress("ws://127.0.0.1:8000", saves=True))
    talk = await talks.load("sess_…")                # SavedTalk, for `DemoSession.resume`
    await talks.delete("sess_…")

All visitors share the demo's API key, so the page lists none of the server's sessions: an id is what opens one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

from speechgpt2.client import ask_server
from speechgpt2.demo.connection import ServerAddress
from speechgpt2.errors import UserError

MAX_REMEMBERED = 50  # conversations of a browser
MAX_TITLE = 60  # characters
NO_TALK = "there is no such conversation any more"
CLOSING = (0.1, 0.3, 1.0, 3.0)  # seconds to wait for a session that was just closed
Role = Literal["user", "assistant"]
Remembered = list[dict[str, str]]  # id and title of a browser's conversations, the latest first


@dataclass(frozen=True)
class SavedTalk:
    """A saved conversation: its id, and who said what."""

    id: str
    lines: tuple[tuple[Role, str], ...]


class SavedTalks:
    """Saved conversations of a server."""

    def __init__(self, server: ServerAddress):
        self.server = server

    async def load(self, id: str) -> SavedTalk:
        """Return a conversation.

        Raises:
            UserError: There is none, or it cannot be read.
        """
        found = await self._request(id, "GET")
        if found is None:
            raise UserError(NO_TALK)
        items = [item for item in found["items"] if item.get("role") in ("user", "assistant")]
        return SavedTalk(id, tuple((item["role"], text_of(item)) for item in items))

    async def delete(self, id: str) -> None:
        """Delete a conversation, which must not be open; nothing if there is none.

        Raises:
            UserError: Another page has it open.
        """
        for pause in CLOSING:
            try:
                await self._request(id, "DELETE")
                return
            except UserError as error:
                if "is in use" not in str(error):
                    raise
            await asyncio.sleep(pause)
        raise UserError("the conversation is open in another page")

    async def _request(self, id: str, method: str) -> dict[str, Any] | None:
        path = f"v1/sessions/{quote(id, safe='')}"
        return await asyncio.to_thread(ask_server, self.server.url, path, self.server.key, method)


def text_of(item: dict[str, Any]) -> str:
    """Return the words of a message."""
    parts = (part.get("text") or part.get("transcript") or "" for part in item.get("content", ()))
    return " ".join(part.strip() for part in parts if part)


def remember(talks: Sequence[dict[str, str]], id: str, title: str) -> Remembered:
    """Return a browser's conversations with one at the front, which keeps the title that it has."""
    known = next((talk["title"] for talk in talks if talk["id"] == id), title[:MAX_TITLE])
    return [{"id": id, "title": known}, *forget(talks, id)][:MAX_REMEMBERED]


def forget(talks: Sequence[dict[str, str]], id: str) -> Remembered:
    """Return a browser's conversations without one."""
    return [talk for talk in talks if talk["id"] != id]
