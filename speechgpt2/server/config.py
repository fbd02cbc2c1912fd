"""The server's settings, from a YAML file, the environment and flags; later sources override earlier ones.

Every field is also an environment variable: `slots` is `SG2_SLOTS`, `limits.session_seconds` is
`SG2_LIMITS_SESSION_SECONDS`. A list is written with commas.
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
from speechgpt2.style import SLOWEST, parse_style

PREFIX = "SG2_"
MEBIBYTE = 2**20
MAX_SLOTS, MAX_CONTEXT = 100_000, 10_000_000  # more is a slip of the keyboard, and too large for a tensor
TCP_PROTOCOLS = ("audiosocket", "wyoming")  # settings that hold addresses of protocols without keys


@dataclass(frozen=True)
class LimitsConfig:
    """Limits of sessions and requests.

    Attributes:
        session_seconds: Length of a session.
        connections: Open connections of all clients.
        header_seconds: Time within which the headers of a request must arrive.
        first_message_seconds: Time from a session's start to the client's first message.
        idle_seconds: Time without any message from the client.
        message_bytes: Size of a client message.
        outbound_bytes: Size of the queue to a client; a client that lets it fill up is disconnected.
        request_bytes: Size of a REST request.
        upload_seconds: Time within which the body of a REST request must arrive.
        transcription_seconds: Length of a recording to transcribe.
        sessions_per_key: Sessions at the same time with one API key; 0 for no such limit.
        drain_seconds: How long responses may go on after SIGTERM.
        retry_seconds: The Retry-After of rejected requests.
    """

    session_seconds: float = 3600.0
    connections: int = 1000
    header_seconds: float = 10.0
    first_message_seconds: float = 60.0
    idle_seconds: float = 600.0
    message_bytes: int = 15 * MEBIBYTE
    outbound_bytes: int = 4 * MEBIBYTE
    request_bytes: int = 32 * MEBIBYTE
    upload_seconds: float = 120.0
    transcription_seconds: float = 7200.0
    sessions_per_key: int = 0
    drain_seconds: float = 30.0
    retry_seconds: int = 5

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if value < 0 or (value == 0 and name != "sessions_per_key"):
                raise UserError(f"{name} must be above 0")


@dataclass(frozen=True)
class ScaleConfig:
    """Several replicas behind one address, on Ray Serve.

    Attributes:
        replicas: Number of replicas, or the least number with autoscaling; 0 for one engine in this process.
        max_replicas: The most replicas with autoscaling; 0 for a fixed number.
        target_utilization: The share of used slots that autoscaling aims at.
        num_cpus: Processors that Ray reserves for each replica.
        num_gpus: GPUs that Ray reserves for each replica, which sees no others; None: one where `device` is a GPU, or
            an equal share where it is "auto" and the cluster has some.
        cluster: Address of a Ray cluster ("auto" on one of its machines); None starts Ray on this machine.
    """

    replicas: int = 0
    max_replicas: int = 0
    target_utilization: float = 0.7
    num_cpus: float = 1.0
    num_gpus: float | None = None
    cluster: str | None = None

    def __post_init__(self) -> None:
        if self.replicas < 0 or self.num_cpus < 0 or (self.num_gpus or 0) < 0:
            raise UserError("replicas, num_cpus and num_gpus must not be negative")
        if not self.replicas and (self.max_replicas or self.cluster):
            raise UserError("max_replicas and cluster need replicas: set replicas to at least 1")
        if self.max_replicas and self.max_replicas < max(1, self.replicas):
            raise UserError(f"max_replicas must be at least replicas ({self.replicas}), not {self.max_replicas}")
        if not 0 < self.target_utilization <= 1:
            raise UserError(f"target_utilization must be above 0 and at most 1, not {self.target_utilization}")


@dataclass(frozen=True)
class ToolsConfig:
    """Tools that the server runs, for models that were trained to call tools.

    Attributes:
        functions: A Python file with functions.
        knowledge: A knowledge base of `sg2 kb`, which the model may search.
        mcp: MCP servers: URLs or command lines.
        expert: NAME@URL of a text model that the model may ask.
        search: A search engine: searxng@URL, ddgs, or kb@FILE.
        timeout: Seconds that a call may take, where the tool does not say.
        filler_seconds: Wait for a result after which the assistant says that it takes a moment; 0: never.
        mcp_hosts: Hosts of MCP servers that clients may name, where the network reaches the server; "*" for all.
    """

    functions: str | None = None
    knowledge: str | None = None
    mcp: tuple[str, ...] = ()
    expert: str | None = None
    search: str | None = None
    timeout: float = 10.0
    filler_seconds: float = 1.5
    mcp_hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.timeout <= 0 or self.filler_seconds < 0:
            raise UserError("timeout must be above 0, and filler_seconds not below")


@dataclass(frozen=True)
class SessionsConfig:
    """Saved sessions, which can be resumed after a lost connection or a restart.

    They hold voices, so by default none are saved.

    Attributes:
        folder: Where they are saved; None: nowhere.
        keep_days: Days after its last turn when a session is deleted; 0: never.
    """

    folder: str | None = None
    keep_days: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.keep_days < 100_000:
            raise UserError(f"keep_days must be at least 0, not {self.keep_days}")
        if self.keep_days and self.folder is None:
            raise UserError("keep_days needs a folder of saved sessions")


@dataclass(frozen=True)
class ServerConfig:
    """All settings of a server.

    Attributes:
        model: Built-in name, folder, or Hugging Face id.
        codec: Another codec than the model's.
        device: "auto", "cpu", "cuda", "cuda:1", "mps" …
        dtype: Precision of the weights; None for the device's default.
        codec_dtype: Precision of the codec's decoder; None for the default of `loading.Sources`.
        quantize: Store the language model's matrices in 8 or 4 bits.
        greetings: A file of greetings, which are the model's voices, in place of that in the model's folder.
        greeting_index: Which greeting opens a session, counted from 0, in place of the default.
        voice: The same by name.
        persona: Who the assistant is where a client does not say: a name of the gallery, or a YAML file.
        speed: How many times as fast as usual the assistant speaks where a client does not say, 0.25 to 1.5.
        style: Names of the style in which it speaks where a client does not say; None: that of the persona.
        slots: Sessions at the same time.
        context: Patches of history per session; a fourth of them for instructions, tools and greeting.
        host: Address to listen on.
        port: Port to listen on; 0 for any free port.
        api_keys: Accepted API keys.
        allow_unauthenticated: Whether the network may connect without a key.
        allowed_origins: Origins of browser pages that may connect, besides the server's own; "*" for all.
        framing_origins: Origins of browser pages that may show the server's page in a frame.
        allowed_hosts: Names by which clients without a key may address the server, besides `host`, addresses and
            localhost; "*" for all.
        ssl_certfile: A certificate with its chain (PEM): the server speaks HTTPS and WSS.
        ssl_keyfile: The certificate's private key (PEM), if it is not in the same file.
        audiosocket: Address on which to accept calls from Asterisk (AudioSocket): HOST:PORT.
        wyoming: Address on which to serve Home Assistant (Wyoming): HOST:PORT.
        ice_servers: STUN servers ("stun:host:port"), which tell a server behind NAT its address, for WebRTC.
        otlp: Address of an OpenTelemetry collector (OTLP over HTTP), which gets the traces of turns.
        log_json: Whether the log is JSON lines.
        log_transcripts: Whether the log contains what is said; it never contains audio.
    """

    model: str = "mini"
    codec: str | None = None
    device: str = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    codec_dtype: Literal["float32", "bfloat16"] | None = None
    quantize: Literal["int8", "int4"] | None = None
    greetings: str | None = None
    greeting_index: int | None = None
    voice: str | None = None
    persona: str | None = None
    speed: float = 1.0
    style: str | None = None
    slots: int = 8
    context: int = 1024
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    allow_unauthenticated: bool = False
    allowed_origins: tuple[str, ...] = ()
    framing_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    audiosocket: str | None = None
    wyoming: str | None = None
    ice_servers: tuple[str, ...] = ()
    otlp: str | None = None
    log_json: bool = False
    log_transcripts: bool = False
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    tools: ToolsConfig = field(default_factory=ToolsConfig)
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    sessions: SessionsConfig = field(default_factory=SessionsConfig)

    def __post_init__(self) -> None:
        if self.voice is not None and self.greeting_index is not None:
            raise UserError("voice and greeting_index exclude each other")
        if self.greeting_index is not None and self.greeting_index < 0:
            raise UserError(f"greeting_index must be at least 0, not {self.greeting_index}")
        if not SLOWEST <= self.speed <= 1.5:
            raise UserError(f"speed must be {SLOWEST:g} to 1.5, not {self.speed:g}")
        if self.style is not None:
            parse_style(self.style)
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            raise UserError("ssl_keyfile needs ssl_certfile")
        if not 1 <= self.slots <= MAX_SLOTS:
            raise UserError(f"slots must be at least 1 and at most {MAX_SLOTS:,}, not {self.slots}")
        if self.context > MAX_CONTEXT:
            raise UserError(f"context must be at most {MAX_CONTEXT:,} patches, not {self.context}")
        if not 0 <= self.port <= 65_535:
            raise UserError(f"port must be in 0…65535, not {self.port}")
        if self.scale.replicas and not self.port:
            raise UserError("replicas need a fixed port, not 0")
        if any(len(key) < 8 for key in self.api_keys):
            raise UserError("an API key must have at least 8 characters")
        if wrong := [url for url in self.ice_servers if not re.fullmatch(r"stun:[^:/?]+(:[0-9]+)?", url)]:
            raise UserError(f"an ICE server must have the form stun:host:port, not {wrong[0]}")
        if not (self.api_keys or self.allow_unauthenticated or is_loopback(self.host)):
            raise UserError(
                f"serving on {self.host} without API keys lets anyone connect: "
                "give --api-key, or --allow-unauthenticated if this is intended"
            )
        for name in TCP_PROTOCOLS:
            if (address := getattr(self, name)) is not None:
                self._check_address(name, address)

    def _check_address(self, name: str, address: str) -> None:
        """Check the address of a protocol that knows no keys."""
        host, _ = split_address(address)
        if self.scale.replicas:
            raise UserError(f"{name} needs one engine: leave replicas out")
        if not (self.allow_unauthenticated or is_loopback(host)):
            raise UserError(
                f"{name} has no API keys, so {address} lets anyone connect: "
                "name an address of this machine only, or give --allow-unauthenticated if this is intended"
            )


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT.

    Raises:
        UserError: It has another form.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65_535:
        raise UserError(f"expected HOST:PORT, such as 127.0.0.1:9092, not {address!r}")
    return host.removeprefix("[").removesuffix("]"), int(port)


def is_loopback(host: str) -> bool:
    """Whether `host` can be reached from this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_config(path: str | Path | None, environ: Mapping[str, str], flags: Mapping[str, Any]) -> ServerConfig:
    """Read the server's settings.

    Args:
        path: A YAML file.
        environ: Environment variables.
        flags: Settings from the command line; None for those that were not given.

    Raises:
        UserError: A setting is unknown or invalid; names the file, variable or key.
    """
    values = config.read(path) if path is not None else {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping of keys")
    _merge(values, read_environment(environ))
    _merge(values, {key: value for key, value in flags.items() if value is not None})
    return config.from_dict(ServerConfig, values, Path(path).name if path is not None else "settings")


def read_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings among the environment variables, nested as in the YAML file.

    Raises:
        UserError: A variable has an invalid value.
    """
    values: dict[str, Any] = {}
    for name, hint, keys in _variables(ServerConfig):
        if name in environ:
            target = values
            for key in keys[:-1]:
                target = target.setdefault(key, {})
            target[keys[-1]] = _parse(hint, environ[name], name)
    return values


def _variables(cls: type[Any], keys: tuple[str, ...] = ()) -> list[tuple[str, Any, tuple[str, ...]]]:
    """Return name, type and keys of every environment variable."""
    found = []
    for key, hint in typing.get_type_hints(cls).items():
        path = (*keys, key)
        if dataclasses.is_dataclass(hint):
            found += _variables(hint, path)  # type: ignore[arg-type]
        else:
            found.append((PREFIX + "_".join(path).upper(), hint, path))
    return found


def _parse(hint: Any, text: str, name: str) -> Any:
    if typing.get_origin(hint) is tuple:
        return [part.strip() for part in text.split(",") if part.strip()]
    if hint is bool:
        if text.lower() not in ("0", "1", "true", "false"):
            raise UserError(f"{name}: expected true or false, got {text!r}")
        return text.lower() in ("1", "true")
    if hint in (int, float, int | None, float | None):
        try:
            return int(text) if hint in (int, int | None) else float(text)
        except ValueError:
            raise UserError(f"{name}: expected a number, got {text!r}") from None
    return text


def _merge(values: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, Mapping) and isinstance(values.get(key), dict):
            _merge(values[key], value)
        else:
            values[key] = value
