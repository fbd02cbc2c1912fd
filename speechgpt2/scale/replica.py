"""One replica: an engine and the server's application over it, whose sockets come through Ray Serve's proxy.

Ray Serve waits for a stopped replica's requests to end, and a socket is a request that does not end by itself; after
its patience Ray kills it without a word. So a replica that is being stopped says goodbye to its sessions itself, as a
single server does upon SIGTERM.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

import ray
from ray import serve

from speechgpt2.server.app import App
from speechgpt2.server.auth import Doorkeeper
from speechgpt2.server.config import ServerConfig
from speechgpt2.server.launch import COLLECT_EVERY, collect, settle
from speechgpt2.server.metrics import log_to_stderr

TICK = 0.2  # seconds between looks at whether Ray is stopping us


@serve.ingress()
class Replica:
    """See the module's text. `make_app` loads the model; `signing`: see `Doorkeeper`."""

    def __init__(self, config: ServerConfig, make_app: Callable[[ServerConfig], App], signing: bytes):
        log_to_stderr(config.log_json)
        being_stopped()  # fails here, and not in the end, if this Ray is another than the one we know
        self.server = make_app(config)
        self.server.door = Doorkeeper(config.api_keys, config.origins, signing=signing)
        self._watching: asyncio.Task[None] | None = None
        settle()

    def __serve_build_asgi_app__(self) -> Callable[..., object]:
        """The application; Ray Serve asks for it on the loop that will run it."""
        self._watching = asyncio.get_running_loop().create_task(self._watch())
        return self.server.asgi

    def check_health(self) -> None:
        """Ray Serve asks now and then, and starts a replica anew that fails three times."""
        if not self.server.engine.alive:
            raise RuntimeError("the engine has failed")

    async def _watch(self) -> None:
        for tick in itertools.count(1):
            if being_stopped():
                break
            if tick % round(COLLECT_EVERY / TICK) == 0:
                await collect()
            await asyncio.sleep(TICK)
        await self.server.drain()


def being_stopped() -> bool:
    """Whether Ray Serve is stopping the replica that runs in this process, which it tells nobody: there is no hook."""
    actor_id = ray.get_runtime_context().get_actor_id()
    actors = ray._private.worker.global_worker.actors
    actor = next(actor for id, actor in actors.items() if id.hex() == actor_id)
    return bool(actor._replica_impl._shutting_down)
