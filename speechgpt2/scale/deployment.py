"""From the server's settings to replicas that run, and back to none.

    start(config); deploy(config, make_app)     # replicas are ready
    wait(config)                                # until a signal comes; then drains and stops

Deploying again replaces the replicas one by one: new ones start, sessions under way are drained from the old ones.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # Ray tells nobody anything
if "ray" not in sys.modules:  # which reads this when it is imported
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # its own ports are for those who have this machine's token

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, HTTPOptions, RequestRouterConfig

from speechgpt2.scale.replica import Replica
from speechgpt2.scale.router import MostRoom
from speechgpt2.server.app import App
from speechgpt2.server.config import ServerConfig, is_loopback

NAME = "speechgpt2"
SPARE = 256  # requests at a replica beyond its slots: those that it refuses, pages, metrics
GRACE = 10.0  # seconds that a replica has to end after its sessions were drained
UPSCALE, DOWNSCALE = 5.0, 300.0  # seconds that it must be too full, or too empty, before the number changes
HEALTH = 5.0  # seconds between looks at whether a replica's engine is alive

QUIET = {"log_level": "WARNING"}  # of Ray Serve; our own logs are as ever


def application(config: ServerConfig, make_app: Callable[[ServerConfig], App], signing: bytes) -> serve.Application:
    """The deployment that serves `config`."""
    scale = config.scale
    routing: dict[str, Any] = {"request_router_class": MostRoom}
    deployment = serve.deployment(
        name="replica",
        num_replicas=None if scale.most else scale.replicas,
        autoscaling_config=autoscaling(config) if scale.most else None,
        max_ongoing_requests=config.slots + SPARE,
        graceful_shutdown_timeout_s=config.limits.drain_seconds + GRACE,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=HEALTH,
        ray_actor_options={"num_cpus": scale.cpus, "num_gpus": scale.gpus},
        logging_config=QUIET,
        request_router_config=RequestRouterConfig(**routing),
    )(Replica)
    return deployment.bind(config, make_app, signing)


def autoscaling(config: ServerConfig) -> AutoscalingConfig:
    """As many replicas as keep `busy` of their slots taken: a socket is one request for as long as it is open."""
    return AutoscalingConfig(
        min_replicas=config.scale.replicas,
        max_replicas=config.scale.most,
        target_ongoing_requests=config.scale.busy * config.slots,
        upscale_delay_s=UPSCALE,
        downscale_delay_s=DOWNSCALE,
    )


def start(config: ServerConfig) -> None:
    """Join the cluster, or start Ray on this machine, without a dashboard; and Ray Serve's proxy."""
    cluster = config.scale.cluster
    if cluster is not None:
        ray.init(address=cluster, namespace="serve", logging_level=logging.WARNING)
    elif not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=True, namespace="serve", logging_level=logging.ERROR)
    options = HTTPOptions(host=config.host, port=config.port)
    location = "HeadOnly" if is_loopback(config.host) else "EveryNode"
    serve.start(proxy_location=location, http_options=options, logging_config=QUIET)


def deploy(config: ServerConfig, make_app: Callable[[ServerConfig], App]) -> None:
    """Serve `config`, in place of what was served before; returns when its replicas are ready."""
    serve.run(application(config, make_app, secrets.token_bytes(32)), name=NAME, route_prefix="/")


def stop() -> None:
    """Drain all replicas, and end what `start` began."""
    serve.delete(NAME)
    serve.shutdown()
    ray.shutdown()


def wait(config: ServerConfig) -> None:
    """Say where it serves. On a cluster that is all; else until a signal comes, then drain. A second does not wait."""
    scale = config.scale
    replicas = f"{scale.replicas} to {scale.most}" if scale.most else scale.replicas
    shown = f"http://{config.host}:{config.port}"
    print(f"serving {config.model} at {shown}, {replicas} replicas of {config.slots} slots each", flush=True)
    if scale.cluster is not None:
        print("it goes on without this command; to stop it: serve shutdown", flush=True)
        return
    done = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: done.set())
    done.wait()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    stop()
