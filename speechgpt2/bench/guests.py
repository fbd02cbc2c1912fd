"""Guests of a server, well-behaved and otherwise: each is one coroutine that comes, does something, and leaves.

Whatever a guest sees that should not be, it writes into the `Book`. To be turned away for want of a slot is fine.
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

from speechgpt2.client import BLOCK, LARGEST, Talk, realtime_url

PATIENCE = 300.0  # seconds to wait for anything: the machine may be busy
TEXTS = ["Hello!", "What is two plus three?", "How are you today?", "Tell me a story.", "你好"]
JUNK = [
    "{",
    "[]",
    '{"type": "input_audio_buffer.append", "audio": "?"}',
    '{"type": "input_audio_buffer.append", "audio": 7}',
    '{"type": "no.such.event"}',
    '{"type": "session.update", "session": {"audio": 1}}',
    b"\x00\xff",
]
HUGE = '{"type": "input_audio_buffer.append", "audio": "' + "A" * 2**24 + '"}'
LONG = "x" * 16_000  # instructions that come back with every session.updated
SILENCE = np.zeros(BLOCK, np.float32)


@dataclass
class Book:
    """What happened: how many of each kind of guest came, answers that were heard to their end, and what went wrong."""

    came: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    answers: int = 0
    interrupted: int = 0
    wrong: list[str] = field(default_factory=list)


@dataclass
class House:
    """The server as guests know it, and what they bring."""

    url: str
    key: str
    questions: Sequence[np.ndarray]
    rng: random.Random
    book: Book


class Wrong(Exception):
    """Something that a good server does not do."""


Guest = Callable[[House], Awaitable[None]]


async def visit(guest: Guest, house: House) -> None:
    """One guest comes and leaves; the book knows how it went."""
    name = guest.__name__
    house.book.came[name] += 1
    try:
        await asyncio.wait_for(guest(house), PATIENCE)
    except InvalidStatus as error:
        if error.response.status_code == 503:
            house.book.refused += 1
        else:
            house.book.wrong.append(f"{name}: HTTP {error.response.status_code}")
    except Wrong as error:
        house.book.wrong.append(f"{name}: {error}")
    except (asyncio.TimeoutError, OSError, ConnectionClosed, EOFError) as error:
        house.book.wrong.append(f"{name}: {type(error).__name__} {error}")


@asynccontextmanager
async def line(house: House, **options: Any) -> AsyncIterator[tuple[Talk, Any]]:
    """A session and its socket."""
    headers = {"Authorization": f"Bearer {house.key}"}
    address = realtime_url(house.url)
    options |= {"max_size": LARGEST, "proxy": None, "open_timeout": PATIENCE, "ping_interval": None}  # slow is not dead
    async with connect(address, additional_headers=headers, **options) as socket:
        yield Talk(socket), socket


async def until(talk: Talk, *types: str) -> dict[str, Any]:
    """The next event of one of these types. Errors: `Wrong` for an error event that is not among them."""
    async for event in talk:
        if event["type"] in types:
            return event
        if event["type"] == "error":
            raise Wrong(f"error event {event['error']['code']}: {event['error']['message']}")
    raise Wrong(f"the session ended before {' or '.join(types)}")


async def ended(talk: Talk) -> str:
    """The status of the next response to end. Errors: `Wrong` if it failed."""
    response = (await until(talk, "response.done"))["response"]
    if response["status"] == "failed":
        raise Wrong(f"an answer failed: {response.get('status_details')}")
    return str(response["status"])


async def closed(talk: Talk, socket: Any, code: int) -> None:
    """The server hangs up. Errors: `Wrong` if it does so with another close code."""
    with suppress(ConnectionClosed):  # its code is looked at below
        async for _ in talk:
            pass
    if socket.close_code != code:
        raise Wrong(f"closed with {socket.close_code} instead of {code}")


# who behaves


async def writes(house: House) -> None:
    """Some typed turns, answered in words or speech."""
    async with line(house) as (talk, _):
        modality = house.rng.choice(["text", "audio"])
        await talk.send("session.update", session={"type": "realtime", "output_modalities": [modality]})
        for _ in range(house.rng.randint(1, 3)):
            await talk.write(house.rng.choice(TEXTS))
            await ended(talk)
            house.book.answers += 1


class Microphone:
    """Says what it is given, and is silent otherwise, at the pace of speech."""

    def __init__(self, talk: Talk):
        self.talk, self.waiting = talk, deque[np.ndarray]()
        self.quiet = asyncio.Event()

    def say(self, pcm: np.ndarray) -> None:
        """Say `pcm [N]` next."""
        self.waiting.append(pcm)
        self.quiet.clear()

    async def run(self) -> None:
        """Be open."""
        while True:
            if not self.waiting:
                self.quiet.set()
            await self.talk.speak(self.waiting.popleft() if self.waiting else SILENCE)


async def speaks(house: House) -> None:
    """A spoken question or two; every third answer is interrupted by another question."""
    async with line(house) as (talk, _):
        microphone = Microphone(talk)
        running = asyncio.create_task(microphone.run())
        try:
            for _ in range(house.rng.randint(1, 2)):
                microphone.say(house.rng.choice(house.questions))
                if house.rng.random() < 0.33:
                    await until(talk, "response.output_audio.delta")
                    await asyncio.sleep(house.rng.uniform(0.1, 1.0))
                    microphone.say(house.rng.choice(house.questions))
                await _heard_out(talk, microphone, house.book)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def _heard_out(talk: Talk, microphone: Microphone, book: Book) -> None:
    """Until an answer to all that was said has ended; a pause in a question may have been answered before."""
    while True:
        status = await ended(talk)
        book.interrupted += status == "cancelled"
        if status != "cancelled" and microphone.quiet.is_set():
            book.answers += 1
            return


async def reads_aloud(house: House) -> None:
    """A REST request that is heard to its end."""
    body = {"model": "mini", "input": house.rng.choice(TEXTS[:3]), "voice": "x", "response_format": "pcm"}
    reader, writer = await _post(house, "/v1/audio/speech", body)
    answer = await reader.read()
    writer.close()
    status = answer[9:12]
    if status == b"503":
        house.book.refused += 1
    elif status != b"200" or len(answer) < 4_000:
        raise Wrong(f"{answer[:80]!r}")


async def _post(house: House, path: str, body: dict[str, Any]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    place, data = urlsplit(house.url), json.dumps(body).encode()
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    head = f"POST {path} HTTP/1.1\r\nHost: {place.netloc}\r\nAuthorization: Bearer {house.key}\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
    await writer.drain()
    return reader, writer


# who does not


async def dies(house: House) -> None:
    """Gone in the middle of an answer, without a word."""
    async with line(house) as (talk, socket):
        await talk.write(house.rng.choice(TEXTS))
        await until(talk, "response.output_audio.delta", "response.done")
        socket.transport.abort()


async def hangs_up_on_rest(house: House) -> None:
    """Gone in the middle of a REST answer."""
    body = {"model": "mini", "messages": [{"role": "user", "content": "Hello!"}], "stream": True}
    body |= {"modalities": ["text", "audio"], "audio": {"voice": "x", "format": "pcm16"}}
    reader, writer = await _post(house, "/v1/chat/completions", body)
    await reader.read(house.rng.randint(1, 5000))
    writer.transport.abort()


async def stalls(house: House) -> None:
    """Asks and never reads; is let go."""
    async with line(house, max_queue=1) as (talk, socket):
        try:
            while True:
                await talk.send("session.update", session={"type": "realtime", "instructions": LONG})
                await asyncio.sleep(0.02)  # a flood would starve the other guests, who share this process
        except ConnectionClosed:
            socket.transport.abort()


async def babbles(house: House) -> None:
    """Sends what is no message; is told so each time, and answered afterwards as ever."""
    async with line(house) as (talk, socket):
        for junk in house.rng.sample(JUNK, 4):
            await socket.send(junk)
            await until(talk, "error")
        await talk.write(house.rng.choice(TEXTS))
        await ended(talk)
        house.book.answers += 1


async def shouts(house: House) -> None:
    """Sends 16 MiB in one message; the session is closed with 1009."""
    async with line(house) as (talk, socket):
        with suppress(ConnectionClosed):  # in the middle of it
            await socket.send(HUGE)
        await closed(talk, socket, 1009)


async def intrudes(house: House) -> None:
    """Has a wrong key; does not come in."""
    stranger = House(house.url, "a-wrong-key", house.questions, house.rng, house.book)
    try:
        async with line(stranger):
            raise Wrong("a wrong key was let in")
    except InvalidStatus as error:
        if error.response.status_code != 401:
            raise Wrong(f"HTTP {error.response.status_code} instead of 401") from None


HEALTHY: tuple[Guest, ...] = (writes, speaks, reads_aloud)
FAULTY: tuple[Guest, ...] = (dies, hangs_up_on_rest, stalls, babbles, shouts, intrudes)
