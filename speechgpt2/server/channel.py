"""The loops of one connection: messages in, events out, the clock; and how a session ends.

    socket ──► read ──► on(message) ──┐                  ┌──► outbox ──► write ──► socket
                                      ├──► the dialogue ─┤
                        on(event)  ◄──┘                  └──► follow ──► on(event)

What a client does wrong becomes an `error` event, and the session goes on. Only limits end it: `Close`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from speechgpt2.errors import UserError
from speechgpt2.server import wire
from speechgpt2.server.config import LimitsConfig
from speechgpt2.server.conversation import new_id
from speechgpt2.server.limits import Outbox, Overflow
from speechgpt2.server.metrics import Metrics
from speechgpt2.server.wire import WireError

log = logging.getLogger("sg2.realtime")
FAREWELL = 1.0  # seconds for the last events to leave
TICK = 0.25  # seconds between looks at the clock
CATCH_UP = 0.01  # seconds between looks at an engine that is behind


class Close(Exception):
    """The session ends, with a websocket close code and a reason."""

    def __init__(self, code: int, reason: str):
        super().__init__(reason)
        self.code, self.reason = code, reason


class Left(Exception):
    """The client is gone, with a websocket close code, or one that says the same of another transport."""

    def __init__(self, code: int, reason: str = "client left"):
        super().__init__(reason)
        self.code, self.reason = code, reason


class Channel:
    """One client and one dialogue. What is to be done about messages and events is said in `on`."""

    def __init__(self, dialogue: Any, limits: LimitsConfig, metrics: Metrics):
        self.dialogue, self.limits, self.metrics = dialogue, limits, metrics
        self.id, self.outbox = new_id("sess"), Outbox(limits.outbound_bytes)
        self.began = self.active = time.monotonic()
        self.verdict: Close | None = None  # how the session will end
        self._over = asyncio.Event()  # there is a verdict
        self._event_id: str | None = None  # of the message that is being answered

    def on(self, what: Any) -> None:
        """A message of the client's, or an event of the dialogue's."""
        raise NotImplementedError

    async def prepared(self, message: wire.Message) -> Any:
        """What `on` is to be called with for a message; work that takes long is done here."""
        return message

    async def run(
        self,
        receive: Callable[[], Awaitable[str | bytes]],
        send: Callable[[str], Awaitable[None]],
        *besides: Coroutine[Any, Any, None],
    ) -> None:
        """Talk until the client leaves. `besides`: what else goes on as long, and ends the talk when it ends.

        Errors: `Close` where the server ends it, and what `receive` raises, which is `Left` in the end.
        """
        writing = asyncio.ensure_future(self.write(send))
        others = (self.read(receive), self.follow(), self.keep_time(), self._over.wait(), *besides)
        loops = [writing, *map(asyncio.ensure_future, others)]
        try:
            done, _ = await asyncio.wait(loops, return_when=asyncio.FIRST_COMPLETED)
            if self.verdict is not None:
                await asyncio.wait([writing], timeout=FAREWELL)
                raise self.verdict
            for loop in done:
                loop.result()
        except Overflow:
            raise Close(1008, "too slow: what the server says is not read") from None
        finally:
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
            self.outbox.discard()  # megabytes, that would stay until the garbage is collected

    async def read(self, receive: Callable[[], Awaitable[str | bytes]]) -> None:
        """Messages from the client, one after the other, and no faster than the engine does what they ask."""
        while True:
            await self.take(await receive())
            self.active = time.monotonic()
            while self.dialogue.backlogged:
                await asyncio.sleep(CATCH_UP)

    async def follow(self) -> None:
        """Events from the dialogue, one after the other."""
        async for event in self.dialogue.events():
            self._event_id = None
            self.on(event)

    async def write(self, send: Callable[[str], Awaitable[None]]) -> None:
        """What is in the outbox, on to the socket."""
        while (message := await self.outbox.get()) is not None:
            await send(message)

    async def keep_time(self) -> None:
        """End a session that lasts too long, or whose client has fallen silent."""
        while True:
            await asyncio.sleep(TICK)
            now = time.monotonic()
            if now > self.began + self.limits.session_seconds:
                self.expire(f"A session lasts {self.limits.session_seconds:.0f} s at most.")
            elif now > self.active + self.limits.idle_seconds:
                self.expire(f"There was no message for {self.limits.idle_seconds:.0f} s.")

    async def take(self, text: str | bytes) -> None:
        """One message; whatever is wrong with it is answered with an `error` event."""
        self._event_id = None
        try:
            raw = wire.read(text)
            self._event_id = raw["event_id"] if isinstance(raw.get("event_id"), str) else None
            self.on(await self.prepared(wire.parse(raw)))
        except WireError as error:
            self.complain(str(error), error.code, error.param)
        except UserError as error:
            self.complain(str(error), "invalid_value")
        except Overflow:
            raise
        except Exception:  # a bug of ours should not cost the client its session
            log.exception("a message failed", extra={"fields": {"session": self.id}})
            self.complain("The server failed to do this.", "server_error", kind="server_error")

    def emit(self, type: str, **fields: Any) -> None:
        """Put one of the protocol's events into the outbox."""
        self.outbox.put(json.dumps({"type": type, "event_id": new_id("event"), **fields}, ensure_ascii=False))

    def complain(self, message: str, code: str, param: str | None = None, kind: str = "invalid_request_error") -> None:
        """Tell the client what is wrong, and with which of its messages."""
        self.metrics.errors.labels(code).inc()
        error = {"type": kind, "code": code, "message": message, "param": param, "event_id": self._event_id}
        self.emit("error", error=error)

    def expire(self, why: str) -> None:
        """End the session by one of its limits."""
        self._event_id = None
        self.complain(why, "session_expired")
        self.finish(Close(1008, why))

    def finish(self, close: Close) -> None:
        """Send what is in the outbox, then end the session."""
        self.verdict = self.verdict or close
        self._over.set()  # or one who reads nothing would keep it open
        self.outbox.close()
