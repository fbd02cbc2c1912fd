"""What a server is told: from a YAML file, the environment, and flags, the later ones going first.

Every field is also an environment variable: `slots` is `SG2_SLOTS`, `limits.session_seconds` is
`SG2_LIMITS_SESSION_SECONDS`; a list is written with commas.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from speechgpt2 import config
from speechgpt2.errors import UserError

PREFIX = "SG2_"
MEBIBYTE = 2**20


@dataclass(frozen=True)
class LimitsConfig:
    """Where patience ends. Seconds and bytes; `per_key`: sessions at once with one API key, 0 for no such limit."""

    session_seconds: float = 3600.0
    idle_seconds: float = 600.0  # without any message from the client
    message_bytes: int = 15 * MEBIBYTE  # an append's sound, in base64
    outbound_bytes: int = 4 * MEBIBYTE  # what may wait for a slow reader before it is let go
    request_bytes: int = 32 * MEBIBYTE  # a REST request
    per_key: int = 0
    drain_seconds: float = 30.0  # how long answers may go on after SIGTERM
    retry_seconds: int = 5  # what the refused are told to wait

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if value < 0 or (value == 0 and name != "per_key"):
                raise UserError(f"{name} must be above 0")


@dataclass(frozen=True)
class ScaleConfig:
    """Several engines behind one address, on Ray Serve. `replicas`: 0 for one engine in this process, without Ray.

    Up to `most` replicas run, as many as keep a share `busy` of their slots taken; 0 for a fixed number. Each asks Ray
    for `cpus` processors and `gpus` devices. `cluster`: a Ray cluster's address ("auto" on one of its machines); Ray is
    started on this machine without.
    """

    replicas: int = 0
    most: int = 0
    busy: float = 0.7
    cpus: float = 1.0
    gpus: float = 0.0
    cluster: str | None = None

    def __post_init__(self) -> None:
        if self.replicas < 0 or self.cpus < 0 or self.gpus < 0:
            raise UserError("replicas, cpus and gpus must not be negative")
        if not self.replicas and (self.most or self.cluster):
            raise UserError("most and cluster are about replicas: say how many to begin with")
        if self.most and self.most < max(1, self.replicas):
            raise UserError(f"most must be at least replicas ({self.replicas}), not {self.most}")
        if not 0 < self.busy <= 1:
            raise UserError(f"busy is a share of the slots, above 0 and at most 1, not {self.busy}")


@dataclass(frozen=True)
class ServerConfig:
    """Everything about one server."""

    model: str = "mini"
    codec: str | None = None
    device: str = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    slots: int = 8
    context: int = 1024  # patches that a session remembers; a fourth of them for instructions, tools and greeting
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    open: bool = False  # serve the network without keys
    origins: tuple[str, ...] = ()  # of browser pages, besides the server's own; "*" for all
    ice_servers: tuple[str, ...] = ()  # "stun:host:port": who tells a server behind NAT its address, for WebRTC
    log_json: bool = False  # one JSON object a line
    log_words: bool = False  # what was said, too; sound is never logged
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    scale: ScaleConfig = field(default_factory=ScaleConfig)

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise UserError(f"slots must be at least 1, not {self.slots}")
        if not 0 <= self.port <= 65_535:
            raise UserError(f"port must be in 0…65535, not {self.port}")
        if self.scale.replicas and not self.port:
            raise UserError("replicas share a port that must be given, not 0")
        if any(len(key) < 8 for key in self.api_keys):
            raise UserError("an API key must have at least 8 characters")
        if wrong := [url for url in self.ice_servers if not re.fullmatch(r"stun:[^:/?]+(:[0-9]+)?", url)]:
            raise UserError(f"an ICE server is written stun:host:port, not {wrong[0]}")
        if not (self.api_keys or self.open or is_loopback(self.host)):
            raise UserError(f"serving on {self.host} without keys lets anyone in: give --api-key, or --open to mean it")


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read(path: str | Path | None, environ: Mapping[str, str], flags: Mapping[str, Any]) -> ServerConfig:
    """The server's settings; a flag that is None was not given. Errors: `UserError` naming file, variable or key."""
    values = config.read(path) if path is not None else {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping of keys")
    _merge(values, from_environment(environ))
    _merge(values, {key: value for key, value in flags.items() if value is not None})
    return config.from_dict(ServerConfig, values, Path(path).name if path is not None else "settings")


def from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """The settings among the environment's variables, as `from_dict` takes them. Errors: `UserError`."""
    values: dict[str, Any] = {}
    for name, hint, keys in _variables(ServerConfig):
        if name in environ:
            target = values
            for key in keys[:-1]:
                target = target.setdefault(key, {})
            target[keys[-1]] = _read_as(hint, environ[name], name)
    return values


def _variables(cls: type[Any], keys: tuple[str, ...] = ()) -> list[tuple[str, Any, tuple[str, ...]]]:
    """Name, type and place of every variable."""
    found = []
    for key, hint in typing.get_type_hints(cls).items():
        path = (*keys, key)
        if dataclasses.is_dataclass(hint):
            found += _variables(hint, path)  # type: ignore[arg-type]
        else:
            found.append((PREFIX + "_".join(path).upper(), hint, path))
    return found


def _read_as(hint: Any, text: str, name: str) -> Any:
    if typing.get_origin(hint) is tuple:
        return [part.strip() for part in text.split(",") if part.strip()]
    if hint is bool:
        if text.lower() not in ("0", "1", "true", "false"):
            raise UserError(f"{name}: expected true or false, got {text!r}")
        return text.lower() in ("1", "true")
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            raise UserError(f"{name}: expected a number, got {text!r}") from None
    return text


def _merge(values: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, Mapping) and isinstance(values.get(key), dict):
            _merge(values[key], value)
        else:
            values[key] = value
