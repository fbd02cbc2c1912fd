"""A client for the OpenAI Realtime protocol over WebSocket.

    async with connect("ws://127.0.0.1:8000", session={"instructions": "Be brief."}) as connection:
        await connection.stream_audio(pcm)          # in real time, as a microphone would
        async for event in connection: ...          # server events, as dicts

It works with any server of the protocol. `PlaybackTracker` computes what a user hears of the responses by when, and
where playback runs dry.
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
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit, urlunsplit
from urllib.request import Request, urlopen

import numpy as np

from speechgpt2 import audio
from speechgpt2.errors import UserError
from speechgpt2.types import SAMPLE_RATE

BLOCK_SAMPLES = SAMPLE_RATE // 50  # 20 ms, sent in one message
MAX_MESSAGE_BYTES = 16 * 2**20
TIMEOUT = 10.0  # seconds for an HTTP request
RESUME_AFTER = 1.0  # seconds behind real time after which the stream restarts at the current time


class RealtimeConnection:
    """An open session. Iterate over it for the server's events.

    Attributes:
        id: The session's id. A server that saves sessions can resume it (`connect`).
        sent_samples: Samples of audio sent.
    """

    def __init__(self, socket: Any):
        self._socket = socket
        self.id, self.sent_samples = "", 0
        self._due: float | None = None  # when the next block should be sent

    async def send(self, type: str, **fields: Any) -> None:
        """Send a client message."""
        await self._socket.send(json.dumps({"type": type, **fields}))

    async def append_audio(self, pcm: np.ndarray) -> None:
        """Send audio `[N]` at once."""
        await self.send("input_audio_buffer.append", audio=base64.b64encode(audio.to_pcm16(pcm)).decode())
        self.sent_samples += len(pcm)

    async def stream_audio(self, pcm: np.ndarray) -> float:
        """Send audio `[N]` in real time.

        Returns:
            When the last block was due, in seconds of the event loop's clock.
        """
        loop = asyncio.get_running_loop()
        if self._due is None or self._due < loop.time() - RESUME_AFTER:
            self._due = loop.time()
        for start in range(0, len(pcm), BLOCK_SAMPLES):
            block = pcm[start : start + BLOCK_SAMPLES]
            self._due += len(block) / SAMPLE_RATE  # a microphone has a block when its last sample was spoken
            await asyncio.sleep(max(0.0, self._due - loop.time()))
            await self.append_audio(block)
        return self._due

    async def send_text(self, text: str) -> None:
        """Send a typed message and ask for a response."""
        content = [{"type": "input_text", "text": text}]
        await self.send("conversation.item.create", item={"type": "message", "role": "user", "content": content})
        await self.send("response.create")

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        async for message in self._socket:
            yield json.loads(message)


@asynccontextmanager
async def connect(
    url: str,
    key: str | None = None,
    model: str = "",
    session: dict[str, Any] | None = None,
    session_id: str | None = None,
) -> AsyncIterator[RealtimeConnection]:
    """Open a session.

    Args:
        url: The server, as `http://…` or `ws://…`, with or without a path.
        key: An API key.
        model: The model's name.
        session: Settings of the session, as in `session.update`.
        session_id: A session to resume, which an `sg2 serve` has saved.

    Raises:
        UserError: There is no server, it rejects the session, or it rejects the settings.
    """
    try:
        from websockets.asyncio.client import connect as open_socket
        from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
    except ImportError:
        raise UserError("connecting to a server needs websockets: pip install 'speechgpt2[server]'") from None

    headers = {"Authorization": f"Bearer {key}"} if key else {}
    address = realtime_url(url, model)
    if session_id is not None:
        address += f"{'&' if urlsplit(address).query else '?'}session_id={quote(session_id)}"
    try:
        async with open_socket(address, additional_headers=headers, max_size=MAX_MESSAGE_BYTES, proxy=None) as socket:
            connection = RealtimeConnection(socket)
            connection.id = (await _expect(connection, "session.created"))["session"]["id"]
            if session:
                await connection.send("session.update", session={"type": "realtime", **session})
                await _expect(connection, "session.updated")
            yield connection
    except InvalidStatus as error:
        raise UserError(f"{url} rejected the session: {_rejection(error.response)}") from None
    except (OSError, InvalidHandshake) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"no server at {url} ({reason}); start one with: sg2 serve") from None
    except ConnectionClosed as error:
        raise UserError(f"{url} closed the session: {error.reason or error}") from None


def realtime_url(url: str, model: str = "") -> str:
    """Return the WebSocket URL of a server."""
    parts = urlsplit(url if "//" in url else f"//{url}", scheme="ws")
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    path = parts.path if parts.path.endswith("/realtime") else parts.path.rstrip("/") + "/v1/realtime"
    return urlunsplit((scheme, parts.netloc, path, f"model={quote(model)}" if model else parts.query, ""))


def http_url(url: str, path: str = "") -> str:
    """Return the HTTP URL of a server's page, or of a path below it."""
    parts = urlsplit(realtime_url(url))
    scheme = {"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme)
    return urlunsplit((scheme, parts.netloc, parts.path.removesuffix("realtime").removesuffix("v1/") + path, "", ""))


def list_voices(url: str, key: str | None = None) -> list[dict[str, Any]]:
    """Return the voices of a server (`GET /v1/voices`); none if it has no such list.

    Raises:
        UserError: There is no server, or it rejects the key.
    """
    return (ask_server(url, "v1/voices", key) or {"data": []})["data"]


def ask_server(url: str, path: str, key: str | None = None, method: str = "GET") -> dict[str, Any] | None:
    """Return what a server answers to an HTTP request; None if there is nothing at this path (404).

    Args:
        url: The server, as `http://…` or `ws://…`.
        path: The path, as `v1/voices`.
        key: An API key.
        method: The HTTP method.

    Raises:
        UserError: There is no server, or it refuses the request.
    """
    request = Request(http_url(url, path), headers={"Authorization": f"Bearer {key}"} if key else {}, method=method)
    try:
        with urlopen(request, timeout=TIMEOUT) as response:
            return json.load(response)
    except HTTPError as error:
        if error.code == 404:
            return None
        raise UserError(f"{url} refuses /{path}: {_error_message(error.read()) or f'HTTP {error.code}'}") from None
    except (URLError, OSError, ValueError) as error:
        raise UserError(f"no server at {url} ({getattr(error, 'reason', error)}); start one with: sg2 serve") from None


async def _expect(connection: RealtimeConnection, type: str) -> dict[str, Any]:
    async for event in connection:
        if event["type"] == type:
            return event
        if event["type"] == "error":
            raise UserError(event["error"]["message"])
    raise UserError("the server closed the session before it started")


def _rejection(response: Any) -> str:
    return _error_message(response.body) or f"HTTP {response.status_code}"


def _error_message(body: bytes) -> str | None:
    try:
        return json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return None


def decode_audio(event: dict[str, Any]) -> np.ndarray:
    """Return the audio of a `response.output_audio.delta` event, `[N]` float32 at 24 kHz."""
    return audio.from_pcm16(base64.b64decode(event["delta"]))


@dataclass
class PlaybackItem:
    """The audio of one item.

    Attributes:
        item_id: The item's id.
        starts_at: When playback may start, in seconds.
        received: Samples received.
        played: Samples played.
        complete: Whether all audio has been received.
    """

    item_id: str
    starts_at: float
    received: int = 0
    played: float = 0.0
    complete: bool = False


class PlaybackTracker:
    """Simulates playback: items play one after the other as time goes on.

    All times are in seconds and must not decrease.

    Args:
        buffer_seconds: Delay from an item's first audio to the start of its playback.

    Attributes:
        underruns: How often playback ran dry in the middle of an item.
    """

    def __init__(self, buffer_seconds: float = 0.0) -> None:
        self.buffer_seconds, self.underruns = buffer_seconds, 0
        self._items: deque[PlaybackItem] = deque()
        self._now = float("-inf")

    def add_audio(self, item_id: str, samples: int, now: float) -> None:
        """Audio of an item has arrived."""
        self._advance(now)
        if not self._items or self._items[-1].item_id != item_id:
            self._items.append(PlaybackItem(item_id, now + self.buffer_seconds))
        item = self._items[-1]
        if 0 < item.received <= item.played:
            self.underruns += 1
            item.starts_at = now + self.buffer_seconds
        item.received += samples

    def mark_complete(self, item_id: str) -> None:
        """All audio of an item has arrived."""
        for item in self._items:
            item.complete |= item.item_id == item_id

    def remaining_seconds(self, now: float) -> float:
        """Return how much received audio has not been played."""
        self._advance(now)
        return sum(item.received - item.played for item in self._items) / SAMPLE_RATE

    def interrupt(self, now: float) -> tuple[str, int] | None:
        """Stop playback.

        Returns:
            The id of the item that played and the milliseconds played of it; None if nothing played.
        """
        self._advance(now)
        cut = next((item for item in self._items if not item.complete or item.played < item.received), None)
        self._items.clear()
        return (cut.item_id, int(cut.played * 1000 / SAMPLE_RATE + 0.001)) if cut else None

    def _advance(self, now: float) -> None:
        """Play up to the time `now`."""
        clock, self._now = self._now, now
        while self._items:
            item = self._items[0]
            clock = max(clock, item.starts_at)
            played = min(max(0.0, (now - clock) * SAMPLE_RATE), item.received - item.played)
            item.played += played
            clock += played / SAMPLE_RATE
            if item.played < item.received or len(self._items) == 1:
                return
            self._items.popleft()
