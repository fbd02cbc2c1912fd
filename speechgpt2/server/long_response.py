"""HTTP responses to work that may take minutes: they begin early and show that the work goes on.

A client, and a proxy before it, gives up on a connection on which nothing comes. So a generator of the response's parts
has an item at least every `HEARTBEAT` seconds (`with_heartbeats`), and what it yields for one changes nothing: a blank
before JSON, an empty line between subtitles, a comment between events.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from fastapi import Response
from fastapi.responses import StreamingResponse
from starlette.types import Send

from speechgpt2.server.api_errors import ApiError
from speechgpt2.server.reply_api import Started

log = logging.getLogger("sg2.server")
HEARTBEAT = 10.0  # seconds, also the time after which an incomplete response begins


async def with_heartbeats(items: Started[Any]) -> AsyncGenerator[Any, None]:
    """Yield the items, and None whenever none has come for `HEARTBEAT` seconds. It closes `items` when it ends."""
    async with aclosing(items):
        coming = asyncio.ensure_future(anext(items, _END))
        try:
            while True:
                await asyncio.wait([coming], timeout=HEARTBEAT)
                if not coming.done():
                    yield None
                elif (item := coming.result()) is _END:
                    return
                else:
                    yield item
                    coming = asyncio.ensure_future(anext(items, _END))
        finally:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)


_END = object()


class LongResponse(StreamingResponse):
    """A response whose first parts have waited for `HEARTBEAT` seconds; `begin` makes it."""

    @classmethod
    async def begin(cls, parts: AsyncGenerator[str, None], media_type: str) -> Response:
        """Return a complete response if it is ready within `HEARTBEAT` seconds, else one that goes on.

        Args:
            parts: Of the body; they come at least every `HEARTBEAT` seconds.
            media_type: The Content-Type.

        Raises:
            ApiError: The request fails in this time.
        """
        ready, end = "", time.monotonic() + HEARTBEAT
        async for part in parts:
            ready += part
            if time.monotonic() >= end:
                return cls(_continued(ready, parts), media_type=media_type)
        return Response(ready, media_type=media_type)

    async def stream_response(self, send: Send) -> None:
        """Send the parts. After a failure the body stays incomplete, which clients notice: the status has been sent."""
        try:
            await super().stream_response(send)
        except ApiError as error:
            log.warning("a response failed after it had begun", extra={"fields": error.body})
            body = json.dumps({"error": error.body}).encode()
            await send({"type": "http.response.body", "body": body, "more_body": True})


async def _continued(ready: str, parts: AsyncGenerator[str, None]) -> AsyncIterator[str]:
    async with aclosing(parts):
        yield ready
        async for part in parts:
            yield part
