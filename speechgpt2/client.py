"""A client of the wire: one OpenAI Realtime session over a websocket, for programs.

    async with connect("ws://127.0.0.1:8000", session={"instructions": "Be brief."}) as talk:
        await talk.speak(pcm)                       # in real time, as a microphone would
        async for event in talk: ...                # the protocol's events, as dicts

It knows nothing of the server but the protocol. `Listener` keeps the books of a loudspeaker: what was heard of which
answer by when, and where it ran dry.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import numpy as np

from speechgpt2 import audio
from speechgpt2.errors import UserError
from speechgpt2.types import SAMPLE_RATE

BLOCK = SAMPLE_RATE // 50  # samples of 20 ms, sent at a time
LARGEST = 16 * 2**20  # bytes of a message


class Talk:
    """An open session."""

    def __init__(self, socket: Any):
        self._socket = socket
        self.spoken = 0  # samples sent so far
        self._due: float | None = None  # when the next block should be sent

    async def send(self, type: str, **fields: Any) -> None:
        """Send one of the client's messages."""
        await self._socket.send(json.dumps({"type": type, **fields}))

    async def append(self, pcm: np.ndarray) -> None:
        """Send sound `[N]` at once."""
        await self.send("input_audio_buffer.append", audio=base64.b64encode(audio.to_pcm16(pcm)).decode())
        self.spoken += len(pcm)

    async def speak(self, pcm: np.ndarray) -> float:
        """Send sound `[N]` at the pace of speech; returns the loop's time at which its last block was due."""
        loop = asyncio.get_running_loop()
        if self._due is None or self._due < loop.time() - 1:  # a pause: the microphone was off
            self._due = loop.time()
        for start in range(0, len(pcm), BLOCK):
            block = pcm[start : start + BLOCK]
            self._due += len(block) / SAMPLE_RATE  # a block exists when its last sample was spoken
            await asyncio.sleep(max(0.0, self._due - loop.time()))
            await self.append(block)
        return self._due

    async def write(self, text: str) -> None:
        """Send a typed message and ask for an answer."""
        content = [{"type": "input_text", "text": text}]
        await self.send("conversation.item.create", item={"type": "message", "role": "user", "content": content})
        await self.send("response.create")

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        async for message in self._socket:
            yield json.loads(message)


@asynccontextmanager
async def connect(
    url: str, key: str | None = None, model: str = "", session: dict[str, Any] | None = None
) -> AsyncIterator[Talk]:
    """Open a session at `url` (`http://…` or `ws://…`, with or without a path) and set it up.

    Errors: `UserError` if there is no server, it refuses, or it does not accept the settings.
    """
    try:
        from websockets.asyncio.client import connect as open_socket
        from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
    except ImportError:
        raise UserError("talking to a server needs websockets: pip install 'speechgpt2[server]'") from None

    headers = {"Authorization": f"Bearer {key}"} if key else {}
    address = realtime_url(url, model)
    try:
        async with open_socket(address, additional_headers=headers, max_size=LARGEST, proxy=None) as socket:
            talk = Talk(socket)
            await _expect(talk, "session.created")
            if session:
                await talk.send("session.update", session={"type": "realtime", **session})
                await _expect(talk, "session.updated")
            yield talk
    except InvalidStatus as error:
        raise UserError(f"{url} refuses: {_refusal(error.response)}") from None
    except (OSError, InvalidHandshake) as error:
        raise UserError(f"no server at {url} ({str(error).splitlines()[0]})") from None
    except ConnectionClosed as error:
        raise UserError(f"{url} closed the session: {error.reason or error}") from None


def realtime_url(url: str, model: str = "") -> str:
    """The websocket's address on a server."""
    parts = urlsplit(url if "//" in url else f"//{url}", scheme="ws")
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    path = parts.path if parts.path.endswith("/realtime") else parts.path.rstrip("/") + "/v1/realtime"
    return urlunsplit((scheme, parts.netloc, path, f"model={quote(model)}" if model else parts.query, ""))


async def _expect(talk: Talk, wanted: str) -> dict[str, Any]:
    async for event in talk:
        if event["type"] == wanted:
            return event
        if event["type"] == "error":
            raise UserError(event["error"]["message"])
    raise UserError("the server closed the session before it began")


def _refusal(response: Any) -> str:
    try:
        return json.loads(response.body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code}"


def sound(event: dict[str, Any]) -> np.ndarray:
    """The sound of a `response.output_audio.delta`, `[N]` float32."""
    return audio.from_pcm16(base64.b64decode(event["delta"]))


@dataclass
class Answer:
    """What arrived of one answer; `heard` samples of it were played."""

    item: str
    begins: float  # when it may be played
    arrived: int = 0
    heard: float = 0.0
    complete: bool = False


class Listener:
    """A loudspeaker without sound: plays what arrived, one answer after the other, as the clock goes on.

    `now` is in seconds, and never goes back. An answer begins `cushion` seconds after its first sound arrived.
    """

    def __init__(self, cushion: float = 0.0) -> None:
        self.cushion, self.underruns = cushion, 0
        self._answers: deque[Answer] = deque()
        self._now = float("-inf")

    def arrive(self, item: str, samples: int, now: float) -> None:
        """Samples of the answer `item` arrive."""
        self._play(now)
        if not self._answers or self._answers[-1].item != item:
            self._answers.append(Answer(item, now + self.cushion))
        answer = self._answers[-1]
        if 0 < answer.arrived <= answer.heard:
            self.underruns += 1
            answer.begins = now + self.cushion
        answer.arrived += samples

    def complete(self, item: str) -> None:
        """All of the answer `item` has arrived."""
        for answer in self._answers:
            answer.complete |= answer.item == item

    def left(self, now: float) -> float:
        """Seconds of sound that are still to be played."""
        self._play(now)
        return sum(answer.arrived - answer.heard for answer in self._answers) / SAMPLE_RATE

    def flush(self, now: float) -> tuple[str, int] | None:
        """Stop: the answer that was being played and the milliseconds heard of it, None if there was none."""
        self._play(now)
        cut = next((a for a in self._answers if not a.complete or a.heard < a.arrived), None)
        self._answers.clear()
        return (cut.item, int(cut.heard * 1000 / SAMPLE_RATE + 0.001)) if cut else None

    def _play(self, now: float) -> None:
        clock, self._now = self._now, now
        while self._answers:
            answer = self._answers[0]
            clock = max(clock, answer.begins)
            played = min(max(0.0, (now - clock) * SAMPLE_RATE), answer.arrived - answer.heard)
            answer.heard += played
            clock += played / SAMPLE_RATE
            if answer.heard < answer.arrived or len(self._answers) == 1:
                return
            self._answers.popleft()
