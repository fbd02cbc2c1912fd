"""One visitor's conversation: a session of the server, opened by the first turn and closed with the page.

    session = DemoSession(ServerAddress("ws://127.0.0.1:8000"))
    async for event in session.ask("Hello", "t2s"): ...     # Transcript, TextDelta, AudioDelta …, ReplyDone
    session.transcript                                      # what was said

The server holds the model's history of that session, and `DemoSession` holds what the page shows. Visitors share
nothing: a saved conversation (saved_talks.py) is known by its id, and only its visitor's browser has the id.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from speechgpt2.demo.connection import BackgroundConnection, ServerAddress
from speechgpt2.demo.greetings import Greeting
from speechgpt2.demo.saved_talks import SavedTalk
from speechgpt2.errors import UserError
from speechgpt2.types import SAMPLE_RATE, Error, Event, Mode, ReplyDone, TextDelta, Transcript

MIN_SAMPLES = SAMPLE_RATE // 10  # of a recording; the protocol's own limit
CANCEL_TIMEOUT = 10.0  # seconds that a cancelled response may take to end


@dataclass(eq=False)
class TranscriptLine:
    """What one side has said in one turn so far."""

    role: Literal["user", "assistant"]
    text: str


class DemoSession:
    """One visitor's conversation.

    Attributes:
        transcript: What was said.
        greeting: The greeting with which the conversation starts.
        delivery: Speed and style of the responses as the protocol names them, as far as the visitor has chosen.
        saved_id: The id under which the server saves the conversation; None if there is none yet, or it saves none.
    """

    def __init__(self, server: ServerAddress):
        self.server, self.transcript = server, list[TranscriptLine]()
        self.greeting: Greeting | None = None
        self.delivery: dict[str, Any] = {}
        self.saved_id: str | None = None
        self._connection: BackgroundConnection | None = None
        self._settings: dict[str, Any] = {}  # those of responses that the server has
        self._turn_lock = asyncio.Lock()
        self._idle_timer: asyncio.TimerHandle | None = None

    @property
    def open(self) -> bool:
        """Whether the session holds a slot of the server."""
        return self._connection is not None and not self._connection.end_reason

    async def ask(self, turn: str | np.ndarray, mode: Mode) -> AsyncIterator[Event]:
        """Say something and yield the events of the response. Interrupts a response in progress.

        If the session has ended meanwhile, an `Error` event comes first and a new conversation starts.

        Args:
            turn: A text, or a recording `[N]` at 24 kHz, as `mode` says.
            mode: Whether the user and the model speak or write.

        Raises:
            UserError: There is nothing to say, the server has no free slot, or the response fails.
        """
        turn = _check_turn(turn, mode)
        await self.cancel()
        try:
            await asyncio.wait_for(self._turn_lock.acquire(), CANCEL_TIMEOUT)
        except asyncio.TimeoutError:
            raise UserError("the last response has not ended yet; try again") from None
        try:
            self._set_idle_timer(None)
            async for event in self._ask(turn, speaks=mode.endswith("s")):
                yield event
        finally:
            self._turn_lock.release()
            self._set_idle_timer(self.server.idle_seconds)

    async def _ask(self, turn: str | np.ndarray, speaks: bool) -> AsyncIterator[Event]:
        if self._connection is not None and self._connection.end_reason:
            reason = self._connection.end_reason
            if self.saved_id is None:
                await self.clear(self.greeting)
                yield Error(f"The last conversation has ended ({reason}). This is a new one.")
            else:
                await self.close()
        connection = await self._open(speaks)
        await connection.cancel_and_wait()
        text = turn if isinstance(turn, str) else f"🎤 {len(turn) / SAMPLE_RATE:.1f} s"
        user, assistant = TranscriptLine("user", text), TranscriptLine("assistant", "")
        self.transcript.append(user)
        if isinstance(turn, str):
            await connection.send_text(turn)
        else:
            await connection.send_audio(turn)
        await connection.respond()
        self.transcript.append(assistant)
        yield TextDelta("")  # lets the page show the user's turn at once
        try:
            async for event in connection.response_events():
                if isinstance(event, Transcript):
                    user.text = event.text or text
                elif isinstance(event, TextDelta):
                    assistant.text = (assistant.text + event.text).lstrip()
                elif isinstance(event, ReplyDone) and event.reason == "interrupted":
                    assistant.text += " …"
                yield event
        except UserError:
            if self._connection is connection:  # otherwise the visitor has closed it during the response
                raise
        finally:
            if not assistant.text and assistant in self.transcript:
                self.transcript.remove(assistant)

    async def cancel(self) -> None:
        """Stop the response in progress, if there is one; the model forgets what was not played."""
        if self._connection is not None and self._connection.responding:
            await self._connection.send("response.cancel")

    async def clear(self, greeting: Greeting | None = None) -> None:
        """Forget everything; the next turn starts a new conversation, after `greeting`."""
        await self.close()
        self.greeting, self.saved_id = greeting, None
        self.transcript = [TranscriptLine("assistant", greeting.text)] if greeting is not None else []

    async def resume(self, talk: SavedTalk) -> None:
        """Resume a saved conversation at the next turn."""
        await self.clear()
        self.saved_id, self.transcript = talk.id, [TranscriptLine(role, text) for role, text in talk.lines]

    async def close(self) -> None:
        """Release the slot."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close("the conversation was closed")
            await connection.wait_closed()

    async def _open(self, speaks: bool) -> BackgroundConnection:
        """Return the connection, set up for spoken or written responses.

        Raises:
            UserError: The server rejects it.
        """
        modality = "audio" if speaks else "text"
        settings: dict[str, Any] = {"output_modalities": [modality], "audio": {"output": dict(self.delivery)}}
        if self._connection is None:
            self._connection = await self._connect(settings)
        elif self._settings != settings:
            await self._connection.send("session.update", session={"type": "realtime", **settings})
        self._settings = settings
        return self._connection

    async def _connect(self, settings: dict[str, Any]) -> BackgroundConnection:
        voice = {} if self.greeting is None else {"voice": self.greeting.name}
        audio_settings = {
            "input": {"turn_detection": None, "transcription": {"model": "own"}},
            "output": {**settings["audio"]["output"], **voice},
        }
        connection = BackgroundConnection(self.server, {**settings, "audio": audio_settings}, self.saved_id)
        try:
            id = await connection.wait_open()
        except BaseException:
            connection.close("the conversation did not start")
            raise
        self.saved_id = id if self.server.saves else None
        return connection

    def _set_idle_timer(self, seconds: float | None) -> None:
        """Release the slot after `seconds`; None stops the timer."""
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        if self._connection is not None and seconds is not None:
            reason = f"nothing was said for {seconds:.0f} s"
            self._idle_timer = asyncio.get_running_loop().call_later(seconds, self._connection.close, reason)


def _check_turn(turn: str | np.ndarray, mode: Mode) -> str | np.ndarray:
    if isinstance(turn, str) != mode.startswith("t"):
        raise UserError(f"mode {mode} needs {'text' if mode.startswith('t') else 'speech'} as input")
    if isinstance(turn, str) and not turn.strip():
        raise UserError("write something first")
    if not isinstance(turn, str) and len(turn) < MIN_SAMPLES:
        raise UserError("the recording is too short; record something first")
    return turn.strip() if isinstance(turn, str) else turn
