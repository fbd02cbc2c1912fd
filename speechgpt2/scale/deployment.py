"""Deployment of replicas on Ray Serve.

    start_ray(config); deploy(config, make_app)     # returns when the replicas are ready
    serve_until_signal(config)                      # then drains and stops

A new deployment replaces the replicas one by one: a new replica starts, then an old one drains.
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

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # no usage statistics leave this machine
if "ray" not in sys.modules:  # Ray reads this when it is imported
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray's own ports need a token

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, HTTPOptions, RequestRouterConfig

from speechgpt2.scale.replica import Replica
from speechgpt2.scale.router import LeastLoadedRouter
from speechgpt2.server.app import App
from speechgpt2.server.config import ServerConfig, is_loopback

NAME = "speechgpt2"
EXTRA_REQUESTS = 256  # at a replica beyond its slots: rejected sessions, pages, metrics
SHUTDOWN_GRACE = 10.0  # seconds that a replica may take to stop after it has drained
UPSCALE_DELAY, DOWNSCALE_DELAY = 5.0, 300.0  # seconds of high or low load before the number of replicas changes
GPU_PARTS = 10_000  # into which Ray divides a GPU
HEALTH_CHECK_PERIOD = 5.0  # seconds

RAY_LOGGING = {"log_level": "WARNING"}  # of Ray Serve; the server's own log is unchanged


def build_application(
    config: ServerConfig, make_app: Callable[[ServerConfig], App], signing_key: bytes
) -> serve.Application:
    """Return the Ray Serve application for `config`."""
    scale = config.scale
    routing: dict[str, Any] = {"request_router_class": LeastLoadedRouter}
    deployment = serve.deployment(
        name="replica",
        num_replicas=None if scale.max_replicas else scale.replicas,
        autoscaling_config=autoscaling_config(config) if scale.max_replicas else None,
        max_ongoing_requests=config.slots + EXTRA_REQUESTS,
        graceful_shutdown_timeout_s=config.limits.drain_seconds + SHUTDOWN_GRACE,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=HEALTH_CHECK_PERIOD,
        ray_actor_options={"num_cpus": scale.num_cpus, "num_gpus": gpus_per_replica(config)},
        logging_config=RAY_LOGGING,
        request_router_config=RequestRouterConfig(**routing),
    )(Replica)
    return deployment.bind(config, make_app, signing_key)


def autoscaling_config(config: ServerConfig) -> AutoscalingConfig:
    """Return Ray's autoscaling settings. An open WebSocket is one ongoing request, so requests count used slots."""
    return AutoscalingConfig(
        min_replicas=config.scale.replicas,
        max_replicas=config.scale.max_replicas,
        target_ongoing_requests=config.scale.target_utilization * config.slots,
        upscale_delay_s=UPSCALE_DELAY,
        downscale_delay_s=DOWNSCALE_DELAY,
    )


def gpus_per_replica(config: ServerConfig) -> float:
    """Return the GPUs that Ray reserves for each replica. It hides all others from the replica's process."""
    scale = config.scale
    if scale.num_gpus is not None:
        return scale.num_gpus
    if config.device != "auto":
        return float(config.device.startswith("cuda"))
    there = float(ray.cluster_resources().get("GPU", 0)) if ray.is_initialized() else 0.0
    return min(1.0, int(there / max(scale.replicas, scale.max_replicas) * GPU_PARTS) / GPU_PARTS)


def start_ray(config: ServerConfig) -> None:
    """Connect to the cluster, or start Ray on this machine without its dashboard; start Ray Serve's proxy."""
    cluster = config.scale.cluster
    if cluster is not None:
        ray.init(address=cluster, namespace="serve", logging_level=logging.WARNING)
    elif not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=True, namespace="serve", logging_level=logging.ERROR)
    options = HTTPOptions(host=config.host, port=config.port)
    location = "HeadOnly" if is_loopback(config.host) else "EveryNode"
    serve.start(proxy_location=location, http_options=options, logging_config=RAY_LOGGING)


def deploy(config: ServerConfig, make_app: Callable[[ServerConfig], App]) -> None:
    """Deploy `config`, in place of an earlier deployment. Returns when its replicas are ready."""
    serve.run(build_application(config, make_app, secrets.token_bytes(32)), name=NAME, route_prefix="/")


def stop() -> None:
    """Drain all replicas; stop Ray Serve and Ray."""
    serve.delete(NAME)
    serve.shutdown()
    ray.shutdown()


def serve_until_signal(config: ServerConfig) -> None:
    """Print the address, wait for a signal, and drain; a second signal stops at once.

    On a cluster it returns at once, and the deployment continues.
    """
    scale = config.scale
    replicas = f"{scale.replicas} to {scale.max_replicas}" if scale.max_replicas else scale.replicas
    url = f"http://{config.host}:{config.port}"
    print(f"serving {config.model} at {url}, {replicas} replicas of {config.slots} slots each", flush=True)
    if scale.cluster is not None:
        print("the deployment continues without this command; stop it with: serve shutdown", flush=True)
        return
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    stopped.wait()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    stop()
