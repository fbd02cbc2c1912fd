"""A real web server on 127.0.0.1, in a thread of its own, and small sounds for it to serve."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest

RATE = 24_000


class Site:
    """A `demo.DemoServer` that runs beside the test; `ask(coroutine)` runs something in its loop."""

    def __init__(self, routes: Mapping[str, Any]):
        from speechgpt2.data.crawl.demo_site import DemoServer

        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.server = DemoServer(routes)
        self.ask(self.server.__aenter__())

    def ask(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)

    def close(self) -> None:
        self.ask(self.server.__aexit__())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def url(self, path: str) -> str:
        return self.server.url(path)

    @property
    def paths(self) -> list[str]:
        """What was asked for, in order, robots.txt left out."""
        return [visit.path for visit in self.server.visits if visit.path != "/robots.txt"]


@pytest.fixture
def serve() -> Iterator[Callable[[Mapping[str, Any]], Site]]:
    sites: list[Site] = []

    def start(routes: Mapping[str, Any]) -> Site:
        sites.append(Site(routes))
        return sites[-1]

    yield start
    for site in sites:
        site.close()


@pytest.fixture(scope="session")
def tone() -> Callable[[int], np.ndarray]:
    """Number -> half a second of sound, different for each number; `pcm [N]` float32 at 24 kHz."""

    def make(number: int) -> np.ndarray:
        time = np.arange(RATE // 2) / RATE
        return (0.3 * np.sin(2 * np.pi * (200 + 10 * number) * time)).astype(np.float32)

    return make


@pytest.fixture(scope="session")
def wav(tone) -> Callable[[int], bytes]:
    """Number -> a WAV file with that tone."""
    from speechgpt2.data.crawl.demo_site import encode

    return lambda number: encode(tone(number), "WAV")
