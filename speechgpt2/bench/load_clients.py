"""Clients of a load test, well-behaved and misbehaving: each is a coroutine.

A client records in `Stats` what a server must not do. A rejection for want of a slot is fine.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from speechgpt2.client import BLOCK_SAMPLES, MAX_MESSAGE_BYTES, RealtimeConnection, realtime_url

TIMEOUT = 300.0  # seconds; generous, since the machine may be busy
TEXTS = ["Hello!", "What is two plus three?", "How are you today?", "Tell me a story.", "你好"]
INVALID_MESSAGES = [
    "{",
    "[]",
    '{"type": "input_audio_buffer.append", "audio": "?"}',
    '{"type": "input_audio_buffer.append", "audio": 7}',
    '{"type": "no.such.event"}',
    '{"type": "session.update", "session": {"audio": 1}}',
    b"\x00\xff",
]
OVERSIZED_MESSAGE = '{"type": "input_audio_buffer.append", "audio": "' + "A" * 2**24 + '"}'
LONG_INSTRUCTIONS = "x" * 16_000  # returned in every session.updated
SILENCE = np.zeros(BLOCK_SAMPLES, np.float32)


@dataclass
class Stats:
    """Results of a load test.

    Attributes:
        clients: Clients by kind.
        rejected: Sessions and requests rejected for want of a slot.
        responses: Responses received to their end.
        interrupted: Responses interrupted by speech.
        failures: What the server did wrong.
    """

    clients: Counter[str] = field(default_factory=Counter)
    rejected: int = 0
    responses: int = 0
    interrupted: int = 0
    failures: list[str] = field(default_factory=list)


@dataclass
class LoadTest:
    """What all clients share: the server, recordings to speak, a random generator, and the results."""

    url: str
    key: str
    questions: Sequence[np.ndarray]
    rng: random.Random
    stats: Stats


class ServerFault(Exception):
    """The server did something that it must not do."""


Client = Callable[[LoadTest], Awaitable[None]]


async def run_client(client: Client, test: LoadTest) -> None:
    """Run one client and record how it went."""
    name, stats = client.__name__, test.stats
    stats.clients[name] += 1
    try:
        await asyncio.wait_for(client(test), TIMEOUT)
    except InvalidStatus as error:
        if error.response.status_code == 503:
            stats.rejected += 1
        else:
            stats.failures.append(f"{name}: HTTP {error.response.status_code}")
    except ServerFault as error:
        stats.failures.append(f"{name}: {error}")
    except (asyncio.TimeoutError, OSError, ConnectionClosed, EOFError) as error:
        stats.failures.append(f"{name}: {type(error).__name__} {error}")


@asynccontextmanager
async def open_session(test: LoadTest, **options: Any) -> AsyncIterator[tuple[RealtimeConnection, Any]]:
    """Open a session; yields its connection and its socket."""
    headers = {"Authorization": f"Bearer {test.key}"}
    # No pings: a busy server may answer them late.
    options |= {"max_size": MAX_MESSAGE_BYTES, "proxy": None, "open_timeout": TIMEOUT, "ping_interval": None}
    async with connect(realtime_url(test.url), additional_headers=headers, **options) as socket:
        yield RealtimeConnection(socket), socket


async def wait_for_event(connection: RealtimeConnection, *types: str) -> dict[str, Any]:
    """Wait for the next event of one of these types.

    Raises:
        ServerFault: An error event, unless `types` contains "error", or the end of the session.
    """
    async for event in connection:
        if event["type"] in types:
            return event
        if event["type"] == "error":
            raise ServerFault(f"error event {event['error']['code']}: {event['error']['message']}")
    raise ServerFault(f"the session ended before {' or '.join(types)}")


async def wait_for_response(connection: RealtimeConnection) -> str:
    """Wait for the end of the next response; returns its status.

    Raises:
        ServerFault: The response failed.
    """
    response = (await wait_for_event(connection, "response.done"))["response"]
    if response["status"] == "failed":
        raise ServerFault(f"a response failed: {response.get('status_details')}")
    return str(response["status"])


async def wait_for_close(connection: RealtimeConnection, socket: Any, code: int) -> None:
    """Wait until the server closes the session.

    Raises:
        ServerFault: The close code is another one.
    """
    with suppress(ConnectionClosed):  # the code is checked below
        async for _ in connection:
            pass
    if socket.close_code != code:
        raise ServerFault(f"closed with {socket.close_code} instead of {code}")


# well-behaved clients


async def text_client(test: LoadTest) -> None:
    """Sends some typed turns; the responses are written or spoken."""
    async with open_session(test) as (connection, _):
        modality = test.rng.choice(["text", "audio"])
        await connection.send("session.update", session={"type": "realtime", "output_modalities": [modality]})
        for _ in range(test.rng.randint(1, 3)):
            await connection.send_text(test.rng.choice(TEXTS))
            await wait_for_response(connection)
            test.stats.responses += 1


class SimulatedMicrophone:
    """Streams recordings in real time, and silence between them."""

    def __init__(self, connection: RealtimeConnection):
        self.connection, self.recordings = connection, deque[np.ndarray]()
        self.silent = asyncio.Event()

    def play(self, pcm: np.ndarray) -> None:
        """Queue a recording `[N]`."""
        self.recordings.append(pcm)
        self.silent.clear()

    async def run(self) -> None:
        """Stream until cancelled."""
        while True:
            if not self.recordings:
                self.silent.set()
            await self.connection.stream_audio(self.recordings.popleft() if self.recordings else SILENCE)


async def voice_client(test: LoadTest) -> None:
    """Speaks one or two questions; interrupts every third response with another question."""
    async with open_session(test) as (connection, _):
        microphone = SimulatedMicrophone(connection)
        streaming = asyncio.create_task(microphone.run())
        try:
            for _ in range(test.rng.randint(1, 2)):
                microphone.play(test.rng.choice(test.questions))
                if test.rng.random() < 0.33:
                    await wait_for_event(connection, "response.output_audio.delta")
                    await asyncio.sleep(test.rng.uniform(0.1, 1.0))
                    microphone.play(test.rng.choice(test.questions))
                await _wait_for_answer(connection, microphone, test.stats)
        finally:
            streaming.cancel()
            await asyncio.gather(streaming, return_exceptions=True)


async def _wait_for_answer(connection: RealtimeConnection, microphone: SimulatedMicrophone, stats: Stats) -> None:
    """Wait until a response to everything that was said has ended.

    A pause within a question may have caused an earlier response.
    """
    while True:
        status = await wait_for_response(connection)
        stats.interrupted += status == "cancelled"
        if status != "cancelled" and microphone.silent.is_set():
            stats.responses += 1
            return


async def speech_request_client(test: LoadTest) -> None:
    """Requests speech by REST and reads it to its end."""
    body = {"model": "mini", "input": test.rng.choice(TEXTS[:3]), "voice": "default", "response_format": "pcm"}
    reader, writer = await _post(test, "/v1/audio/speech", body)
    response = await reader.read()
    writer.close()
    status = response[9:12]
    if status == b"503":
        test.stats.rejected += 1
    elif status != b"200" or len(response) < 4_000:
        raise ServerFault(f"{response[:80]!r}")


async def _post(test: LoadTest, path: str, body: dict[str, Any]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts, data = urlsplit(test.url), json.dumps(body).encode()
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    head = f"POST {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: Bearer {test.key}\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
    await writer.drain()
    return reader, writer


# misbehaving clients


async def aborting_client(test: LoadTest) -> None:
    """Resets the connection in the middle of a response."""
    async with open_session(test) as (connection, socket):
        await connection.send_text(test.rng.choice(TEXTS))
        await wait_for_event(connection, "response.output_audio.delta", "response.done")
        socket.transport.abort()


async def aborting_rest_client(test: LoadTest) -> None:
    """Resets the connection in the middle of a streamed REST response."""
    body = {"model": "mini", "messages": [{"role": "user", "content": "Hello!"}], "stream": True}
    body |= {"modalities": ["text", "audio"], "audio": {"voice": "default", "format": "pcm16"}}
    reader, writer = await _post(test, "/v1/chat/completions", body)
    await reader.read(test.rng.randint(1, 5000))
    writer.transport.abort()


async def slow_client(test: LoadTest) -> None:
    """Sends messages and never reads; the server must disconnect it."""
    async with open_session(test, max_queue=1) as (connection, socket):
        try:
            while True:
                session = {"type": "realtime", "instructions": LONG_INSTRUCTIONS}
                await connection.send("session.update", session=session)
                await asyncio.sleep(0.02)  # a flood would starve the other clients in this process
        except ConnectionClosed:
            socket.transport.abort()


async def invalid_message_client(test: LoadTest) -> None:
    """Sends invalid messages; expects an error for each, and a response afterwards."""
    async with open_session(test) as (connection, socket):
        for message in test.rng.sample(INVALID_MESSAGES, 4):
            await socket.send(message)
            await wait_for_event(connection, "error")
        await connection.send_text(test.rng.choice(TEXTS))
        await wait_for_response(connection)
        test.stats.responses += 1


async def oversized_message_client(test: LoadTest) -> None:
    """Sends 16 MiB in one message; expects the close code 1009."""
    async with open_session(test) as (connection, socket):
        with suppress(ConnectionClosed):  # while the message is sent
            await socket.send(OVERSIZED_MESSAGE)
        await wait_for_close(connection, socket, 1009)


async def wrong_key_client(test: LoadTest) -> None:
    """Connects with a wrong key; expects HTTP 401."""
    unauthenticated = LoadTest(test.url, "a-wrong-key", test.questions, test.rng, test.stats)
    try:
        async with open_session(unauthenticated):
            raise ServerFault("a wrong key was accepted")
    except InvalidStatus as error:
        if error.response.status_code != 401:
            raise ServerFault(f"HTTP {error.response.status_code} instead of 401") from None


WELL_BEHAVED: tuple[Client, ...] = (text_client, voice_client, speech_request_client)
MISBEHAVING: tuple[Client, ...] = (
    aborting_client,
    aborting_rest_client,
    slow_client,
    invalid_message_client,
    oversized_message_client,
    wrong_key_client,
)
