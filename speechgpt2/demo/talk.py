"""One visitor's talk over the wire: a session of his own, opened by his first turn and closed when he leaves.

    visit = Visit(Wire("ws://127.0.0.1:8000"))
    async for event in visit.ask("Hello", "t2s"): ...       # Transcript, TextDelta, AudioDelta …, ReplyDone
    visit.lines                                             # who has said what

What the model remembers is kept by the server, in that session, and what is shown of it in the `Visit`; there is no
place where two visitors could meet.
"""

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
from speechgpt2.client import Talk, connect, sound
from speechgpt2.demo.greetings import Greeting
from speechgpt2.errors import UserError
from speechgpt2.types import SAMPLE_RATE, AudioDelta, Error, Event, Mode, ReplyDone, TextDelta, Transcript

PIECE = 10 * SAMPLE_RATE  # samples of a recording in one message, well below what a server takes
SHORTEST = SAMPLE_RATE // 10  # samples of a recording; the protocol's own limit
NOTHING_TO_CANCEL = "response_cancel_not_active"  # the answer had just ended
PATIENCE = 10.0  # seconds that an interrupted answer has to end
REASONS: dict[str, Literal["stop", "length", "interrupted"]] = {
    "completed": "stop",
    "incomplete": "length",
    "cancelled": "interrupted",
}


@dataclass(frozen=True)
class Wire:
    """Where the server is. After `idle_seconds` without a turn a visitor's place is given to others."""

    url: str
    key: str | None = None
    idle_seconds: float = 300.0


@dataclass(eq=False)
class Line:
    """What one side has said so far."""

    role: Literal["user", "assistant"]
    text: str


class Session:
    """A session of the server's, followed by a task of its own: its events wait here, and at last why it ended."""

    def __init__(self, wire: Wire, settings: dict[str, Any]):
        self.answering, self.ended = False, ""
        self._settling = ""  # the name of our latest demand to stop
        self._talk: asyncio.Future[Talk] = asyncio.get_running_loop().create_future()
        self._events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()  # None: no more will come
        self._task = asyncio.create_task(self._follow(wire, settings))

    async def _follow(self, wire: Wire, settings: dict[str, Any]) -> None:
        try:
            async with connect(wire.url, wire.key, session=settings) as talk:
                self._talk.set_result(talk)
                async for event in talk:
                    self._events.put_nowait(event)
            self.ended = "the server ended the talk"
        except UserError as error:
            self.ended = str(error)
        finally:
            self._events.put_nowait(None)
            if not self._talk.done():
                self._talk.set_exception(UserError(self.ended or "the talk was closed"))

    async def opened(self) -> None:
        """Wait until the server lets us in. Errors: `UserError` if it does not."""
        await self._talk

    async def send(self, type: str, **fields: Any) -> None:
        """Send a message; to a session that has ended, nothing."""
        from websockets.exceptions import ConnectionClosed

        with suppress(ConnectionClosed):  # its last event says why
            await self._talk.result().send(type, **fields)

    async def next(self) -> dict[str, Any]:
        """The next event. Errors: `UserError` for the server's complaints, and if the session has ended."""
        event = await self._events.get()
        if event is None:
            self._events.put_nowait(None)  # for whoever asks next
            self.answering = False
            raise UserError(self.ended)
        if event["type"] == "error" and event["error"].get("code") != NOTHING_TO_CANCEL:
            raise UserError(event["error"]["message"])
        if event["type"] == "response.done" or event.get("error", {}).get("event_id") == self._settling:
            self.answering = False
        return event

    async def until(self, type: str) -> None:
        """Wait for an event, let others pass. Errors: as for `next`."""
        while (await self.next())["type"] != type:
            pass

    async def respond(self) -> None:
        """Ask for an answer."""
        self.answering = True
        await self.send("response.create")

    async def settle(self) -> None:
        """An answer that nobody follows any more is stopped, and its events are let go. Errors: as for `next`."""
        if self.answering:
            self._settling = f"settle_{secrets.token_hex(8)}"
            await self.send("response.cancel", event_id=self._settling)
        while self.answering:  # the answer ends, or there was none after all
            await self.next()

    def close(self, why: str) -> None:
        """End it."""
        self.ended = self.ended or why
        self._task.cancel()

    async def closed(self) -> None:
        """Wait until the server knows that it has ended."""
        await asyncio.wait({self._task})


class Visit:
    """One visitor: what he sees, and his session with the server."""

    def __init__(self, wire: Wire):
        self.wire, self.lines = wire, list[Line]()
        self.greeting: Greeting | None = None
        self._session: Session | None = None
        self._speaks: bool | None = None  # whether answers are spoken, as the session was told
        self._turn = asyncio.Lock()
        self._idle: asyncio.TimerHandle | None = None

    @property
    def open(self) -> bool:
        """Whether he holds a place on the server."""
        return self._session is not None and not self._session.ended

    async def ask(self, turn: str | np.ndarray, mode: Mode) -> AsyncIterator[Event]:
        """Say `turn`, words or `pcm [N]` as `mode` has it, and follow the answer; one that is under way is interrupted.

        Where the session had ended, an `Error` says so first, and the talk begins anew.
        Errors: `UserError` if there is nothing to say, the server has no place, or the answer fails.
        """
        said = _checked(turn, mode)
        await self.stop()
        try:
            await asyncio.wait_for(self._turn.acquire(), PATIENCE)
        except asyncio.TimeoutError:
            raise UserError("the last answer has not ended yet; try again") from None
        try:
            self._leave_in(None)
            async for event in self._ask(said, speaks=mode.endswith("s")):
                yield event
        finally:
            self._turn.release()
            self._leave_in(self.wire.idle_seconds)

    async def _ask(self, said: str | np.ndarray, speaks: bool) -> AsyncIterator[Event]:
        if self._session is not None and self._session.ended:
            why = self._session.ended
            await self.clear(self.greeting)
            yield Error(f"The last talk is over ({why}). This is a new one.")
        session = await self._open(speaks)
        await session.settle()
        words = said if isinstance(said, str) else f"🎤 {len(said) / SAMPLE_RATE:.1f} s"
        user, assistant = Line("user", words), Line("assistant", "")
        self.lines.append(user)
        await (_write if isinstance(said, str) else _speak)(session, said)  # type: ignore[arg-type]
        await session.respond()
        self.lines.append(assistant)
        yield TextDelta("")  # nothing yet, but the user's turn can be shown
        try:
            async for event in _answer(session):
                if isinstance(event, Transcript):
                    user.text = event.text or words
                elif isinstance(event, TextDelta):
                    assistant.text = (assistant.text + event.text).lstrip()
                elif isinstance(event, ReplyDone) and event.reason == "interrupted":
                    assistant.text += " …"
                yield event
        except UserError:
            if self._session is session:  # or else it was closed while it answered, as the visitor wished
                raise
        finally:
            if not assistant.text and assistant in self.lines:
                self.lines.remove(assistant)

    async def stop(self) -> None:
        """Stop the answer that is under way, if there is one; what was not heard of it is forgotten."""
        if self._session is not None and self._session.answering:
            await self._session.send("response.cancel")

    async def clear(self, greeting: Greeting | None = None) -> None:
        """Forget everything; the next turn begins a new talk, after `greeting`."""
        await self.close()
        self.greeting = greeting
        self.lines = [Line("assistant", greeting.words)] if greeting is not None else []

    async def close(self) -> None:
        """Give the place back."""
        session, self._session = self._session, None
        if session is not None:
            session.close("the talk was closed")
            await session.closed()

    async def _open(self, speaks: bool) -> Session:
        """The session, set up so that answers are spoken, or written. Errors: `UserError`."""
        settings: dict[str, Any] = {"output_modalities": ["audio" if speaks else "text"]}
        if self._session is None:
            self._session = await self._begin(settings)
        elif self._speaks != speaks:
            await self._session.send("session.update", session={"type": "realtime", **settings})
        self._speaks = speaks
        return self._session

    async def _begin(self, settings: dict[str, Any]) -> Session:
        listening = {"turn_detection": None, "transcription": {"model": "own"}}
        session = Session(self.wire, {**settings, "audio": {"input": listening}})
        try:
            await session.opened()
            if self.greeting is not None:
                await _greet(session, self.greeting)
        except BaseException:
            session.close("it never began")
            raise
        return session

    def _leave_in(self, seconds: float | None) -> None:
        """Give the place back after so many seconds; None: not while a turn lasts."""
        if self._idle is not None:
            self._idle.cancel()
        if self._session is not None and seconds is not None:
            why = f"nothing was said for {seconds:.0f} s"
            self._idle = asyncio.get_running_loop().call_later(seconds, self._session.close, why)


def _checked(turn: str | np.ndarray, mode: Mode) -> str | np.ndarray:
    if isinstance(turn, str) != mode.startswith("t"):
        raise UserError(f"mode {mode} takes {'words' if mode.startswith('t') else 'speech'} from you")
    if isinstance(turn, str) and not turn.strip():
        raise UserError("write something first")
    if not isinstance(turn, str) and len(turn) < SHORTEST:
        raise UserError("the recording is too short; record something first")
    return turn.strip() if isinstance(turn, str) else turn


async def _write(session: Session, text: str) -> None:
    content = [{"type": "input_text", "text": text}]
    await session.send("conversation.item.create", item={"type": "message", "role": "user", "content": content})
    await session.until("conversation.item.added")


async def _speak(session: Session, pcm: np.ndarray) -> None:
    for start in range(0, len(pcm), PIECE):
        piece = audio.to_pcm16(pcm[start : start + PIECE])
        await session.send("input_audio_buffer.append", audio=base64.b64encode(piece).decode())
    await session.send("input_audio_buffer.commit")
    await session.until("input_audio_buffer.committed")


async def _greet(session: Session, greeting: Greeting) -> None:
    """The session's first item, spoken by the assistant, is its greeting."""
    pcm = await asyncio.to_thread(lambda: greeting.pcm)  # may have to be decoded
    data = base64.b64encode(audio.to_pcm16(pcm)).decode()
    content = [{"type": "output_audio", "audio": data, "transcript": greeting.words}]
    await session.send("conversation.item.create", item={"type": "message", "role": "assistant", "content": content})
    await session.until("conversation.item.added")


async def _answer(session: Session) -> AsyncIterator[Event]:
    """What comes of an answer, until it ends."""
    while session.answering:
        event = _translated(await session.next())
        if event is not None:
            yield event


def _translated(event: dict[str, Any]) -> Event | None:
    """The wire's event in our words; None for those that say nothing new. Errors: `UserError` for a failed answer."""
    kind = event["type"]
    if kind == "conversation.item.input_audio_transcription.completed":
        return Transcript(event["transcript"].strip())
    if kind in ("response.output_audio_transcript.delta", "response.output_text.delta"):
        return TextDelta(event["delta"])
    if kind == "response.output_audio.delta":
        return AudioDelta(sound(event))
    if kind == "response.done":
        response = event["response"]
        if response["status"] == "failed":
            details = response.get("status_details") or {}
            raise UserError(details.get("error", {}).get("message", "the answer failed"))
        return ReplyDone(REASONS[response["status"]])
    return None
