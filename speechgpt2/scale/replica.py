"""One replica: an engine and a server on it, whose sockets come through Ray Serve's proxy.

Ray Serve waits for a stopped replica's requests to end, and kills it after a timeout. A socket is a request that does
not end by itself. So a replica that is being stopped drains, as a single server does on SIGTERM.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

import ray
from ray import serve

from speechgpt2.server.app import App
from speechgpt2.server.auth import Authenticator
from speechgpt2.server.config import ServerConfig
from speechgpt2.server.launch import GC_INTERVAL, collect_garbage, tune_process
from speechgpt2.server.logs import log_to_stderr

POLL_INTERVAL = 0.2  # seconds


@serve.ingress()
class Replica:
    """A Ray Serve replica.

    Args:
        config: The server's settings.
        make_app: Loads the model and makes the server.
        signing_key: Signs client secrets; the same for all replicas.
    """

    def __init__(self, config: ServerConfig, make_app: Callable[[ServerConfig], App], signing_key: bytes):
        log_to_stderr(config.log_json)
        is_shutting_down()  # fails now rather than at shutdown if this version of Ray differs
        self.server = make_app(config)
        self.server.gateway.authenticator = Authenticator(
            config.api_keys, config.allowed_origins, signing_key=signing_key
        )
        self._watching: asyncio.Task[None] | None = None
        tune_process()

    def __serve_build_asgi_app__(self) -> Callable[..., object]:
        """Return the application; Ray Serve calls this on the event loop that runs it."""
        self._watching = asyncio.get_running_loop().create_task(self._watch())
        return self.server.asgi

    def check_health(self) -> None:
        """Raise an error if the engine has failed; Ray Serve restarts the replica after three failures."""
        if not self.server.engine.alive:
            raise RuntimeError("the engine has failed")

    async def _watch(self) -> None:
        """Collect garbage until Ray stops the replica, then drain."""
        for count in itertools.count(1):
            if is_shutting_down():
                break
            if count % round(GC_INTERVAL / POLL_INTERVAL) == 0:
                await collect_garbage()
            await asyncio.sleep(POLL_INTERVAL)
        await self.server.drain()


def is_shutting_down() -> bool:
    """Whether Ray Serve is stopping the replica in this process. Ray has no hook for that; this reads its state."""
    actor_id = ray.get_runtime_context().get_actor_id()
    actors = ray._private.worker.global_worker.actors
    actor = next(actor for id, actor in actors.items() if id.hex() == actor_id)
    return bool(actor._replica_impl._shutting_down)
