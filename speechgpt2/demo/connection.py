"""A connection to the server that a task of its own reads, so that a page may leave a response unread."""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from speechgpt2 import audio
from speechgpt2.client import RealtimeConnection, connect, decode_audio
from speechgpt2.errors import UserError
from speechgpt2.types import SAMPLE_RATE, AudioDelta, Event, ReplyDone, TextDelta, Transcript

APPEND_SAMPLES = 10 * SAMPLE_RATE  # of a recording in one message, well below a server's limit
NOT_ACTIVE = "response_cancel_not_active"  # the error of a cancellation that comes too late
REASONS: dict[str, Literal["stop", "length", "interrupted"]] = {
    "completed": "stop",
    "incomplete": "length",
    "cancelled": "interrupted",
}


@dataclass(frozen=True)
class ServerAddress:
    """The address of the server.

    Attributes:
        url: Its URL.
        key: An API key.
        idle_seconds: Time without a turn after which a conversation's slot is released.
        saves: Whether it saves conversations, so that they can be resumed.
        keep_days: For how many days; 0: for good.
    """

    url: str
    key: str | None = None
    idle_seconds: float = 300.0
    saves: bool = False
    keep_days: float = 0.0


class BackgroundConnection:
    """A Realtime session whose events are queued by a task.

    Args:
        server: The server.
        settings: Settings of the session.
        saved_id: The saved session to resume; None: a new one.

    Attributes:
        responding: Whether a response is in progress.
        end_reason: Why the session has ended; empty while it is open.
    """

    def __init__(self, server: ServerAddress, settings: dict[str, Any], saved_id: str | None = None):
        self.responding, self.end_reason = False, ""
        self._cancel_id = ""  # event id of the latest cancellation
        self._connection: asyncio.Future[RealtimeConnection] = asyncio.get_running_loop().create_future()
        self._events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()  # None marks the end
        self._task = asyncio.create_task(self._read(server, settings, saved_id))

    async def _read(self, server: ServerAddress, settings: dict[str, Any], saved_id: str | None) -> None:
        try:
            async with connect(server.url, server.key, session=settings, session_id=saved_id) as connection:
                self._connection.set_result(connection)
                async for event in connection:
                    self._events.put_nowait(event)
            self.end_reason = "the server ended the conversation"
        except UserError as error:
            self.end_reason = str(error)
        finally:
            self._events.put_nowait(None)
            if not self._connection.done():
                self._connection.set_exception(UserError(self.end_reason or "the conversation was closed"))

    async def wait_open(self) -> str:
        """Wait until the session is open, and return its id.

        Raises:
            UserError: The server rejects it.
        """
        return (await self._connection).id

    async def send(self, type: str, **fields: Any) -> None:
        """Send a message; nothing if the session has ended."""
        from websockets.exceptions import ConnectionClosed

        with suppress(ConnectionClosed):  # `end_reason` says why
            await self._connection.result().send(type, **fields)

    async def next_event(self) -> dict[str, Any]:
        """Wait for the next event.

        Raises:
            UserError: It is an error, or the session has ended.
        """
        event = await self._events.get()
        if event is None:
            self._events.put_nowait(None)  # for the next call
            self.responding = False
            raise UserError(self.end_reason)
        if event["type"] == "error" and event["error"].get("code") != NOT_ACTIVE:
            raise UserError(event["error"]["message"])
        if event["type"] == "response.done" or event.get("error", {}).get("event_id") == self._cancel_id:
            self.responding = False
        return event

    async def wait_for(self, type: str) -> None:
        """Skip events up to the next of a type.

        Raises:
            UserError: See `next_event`.
        """
        while (await self.next_event())["type"] != type:
            pass

    async def send_text(self, text: str) -> None:
        """Add a typed message."""
        await self._create_message("user", [{"type": "input_text", "text": text}])

    async def send_audio(self, pcm: np.ndarray) -> None:
        """Add a recording `[N]` as a turn."""
        for start in range(0, len(pcm), APPEND_SAMPLES):
            data = audio.to_pcm16(pcm[start : start + APPEND_SAMPLES])
            await self.send("input_audio_buffer.append", audio=base64.b64encode(data).decode())
        await self.send("input_audio_buffer.commit")
        await self.wait_for("input_audio_buffer.committed")

    async def _create_message(self, role: str, content: list[dict[str, Any]]) -> None:
        await self.send("conversation.item.create", item={"type": "message", "role": role, "content": content})
        await self.wait_for("conversation.item.added")

    async def respond(self) -> None:
        """Ask for a response."""
        self.responding = True
        await self.send("response.create")

    async def cancel_and_wait(self) -> None:
        """Cancel a response that is in progress and drop its events.

        Raises:
            UserError: See `next_event`.
        """
        if self.responding:
            self._cancel_id = f"cancel_{secrets.token_hex(8)}"
            await self.send("response.cancel", event_id=self._cancel_id)
        while self.responding:  # until the response is done, or the server says that there was none
            await self.next_event()

    async def response_events(self) -> AsyncIterator[Event]:
        """Yield the events of the current response until it is done.

        Raises:
            UserError: The response failed; see also `next_event`.
        """
        while self.responding:
            event = _to_event(await self.next_event())
            if event is not None:
                yield event

    def close(self, reason: str) -> None:
        """End the session."""
        self.end_reason = self.end_reason or reason
        self._task.cancel()

    async def wait_closed(self) -> None:
        """Wait until the socket is closed."""
        await asyncio.wait({self._task})


def _to_event(event: dict[str, Any]) -> Event | None:
    """Convert a server event; None for those that the page does not need.

    Raises:
        UserError: The response failed.
    """
    kind = event["type"]
    if kind == "conversation.item.input_audio_transcription.completed":
        return Transcript(event["transcript"].strip())
    if kind in ("response.output_audio_transcript.delta", "response.output_text.delta"):
        return TextDelta(event["delta"])
    if kind == "response.output_audio.delta":
        return AudioDelta(decode_audio(event))
    if kind == "response.done":
        response = event["response"]
        if response["status"] == "failed":
            details = response.get("status_details") or {}
            raise UserError(details.get("error", {}).get("message", "the response failed"))
        return ReplyDone(REASONS[response["status"]])
    return None
