"""`sg2 serve`: a model for concurrent sessions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from speechgpt2.cli import common
from speechgpt2.cli.chat import ExpertName, KnowledgeFile, McpServers, SearchName, ToolFile
from speechgpt2.cli.common import CodecDType, DType, Quantize, print_warning, spinner
from speechgpt2.cli.persona_options import PersonaName, SessionSpeed, StyleNames
from speechgpt2.errors import UserError

if TYPE_CHECKING:
    from speechgpt2.server.app import App
    from speechgpt2.server.config import ServerConfig

SERVER_EXTRA = "serving needs more packages: pip install 'speechgpt2[server]'"
RAY_EXTRA = "several replicas need Ray: pip install 'speechgpt2[ray]'"


def serve(
    config: Annotated[
        Path | None, typer.Option(help="A YAML file with any of these settings, and limits.", metavar="FILE")
    ] = None,
    model: Annotated[str | None, typer.Option(help=f"{common.MODEL_HELP} [default: mini]", metavar="NAME")] = None,
    codec: Annotated[str | None, typer.Option(help=common.CODEC_HELP, metavar="NAME")] = None,
    slots: Annotated[int | None, typer.Option(help="Maximum number of concurrent sessions. [default: 8]")] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; 0.0.0.0 for the network. [default: 127.0.0.1]")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 for any free one. [default: 8000]")] = None,
    api_key: Annotated[list[str] | None, typer.Option(help="Accepted API key (repeatable).", metavar="KEY")] = None,
    allow_unauthenticated: Annotated[
        bool | None, typer.Option("--allow-unauthenticated", help="Serve the network without API keys.")
    ] = None,
    allowed_origin: Annotated[
        list[str] | None,
        typer.Option(help="Allowed browser origin (repeatable); * allows all.", metavar="ORIGIN"),
    ] = None,
    ssl_certfile: Annotated[
        str | None, typer.Option(help="A certificate (PEM): serve HTTPS and WSS.", metavar="FILE")
    ] = None,
    ssl_keyfile: Annotated[
        str | None, typer.Option(help="The certificate's private key (PEM).", metavar="FILE")
    ] = None,
    self_signed: Annotated[
        bool,
        typer.Option(
            "--self-signed",
            help="Serve HTTPS with a self-signed certificate, made on first use; for phones in a local network.",
        ),
    ] = False,
    device: Annotated[str | None, typer.Option(help=f"{common.DEVICE_HELP} [default: auto]", metavar="DEVICE")] = None,
    dtype: DType = None,
    codec_dtype: CodecDType = None,
    quantize: Quantize = None,
    greetings: common.Greetings = None,
    greeting_index: common.GreetingIndex = None,
    voice: common.VoiceName = None,
    persona: PersonaName = None,
    audiosocket: Annotated[
        str | None,
        typer.Option(help="Accept calls from Asterisk (AudioSocket) on this address.", metavar="HOST:PORT"),
    ] = None,
    wyoming: Annotated[
        str | None,
        typer.Option(
            help="Serve Home Assistant (Wyoming) on this address, such as 0.0.0.0:10300.", metavar="HOST:PORT"
        ),
    ] = None,
    otlp: Annotated[
        str | None,
        typer.Option(
            help="Send traces of requests and turns to this OpenTelemetry collector, such as http://localhost:4318. "
            "[default: as OpenTelemetry's variables say]",
            metavar="URL",
        ),
    ] = None,
    speed: SessionSpeed = None,
    style: StyleNames = None,
    log_json: Annotated[bool | None, typer.Option("--log-json", help="Log as JSON lines.")] = None,
    log_transcripts: Annotated[bool | None, typer.Option("--log-transcripts", help="Also log transcripts.")] = None,
    sessions: Annotated[
        Path | None,
        typer.Option(
            help="Save sessions in this folder, so that clients can resume them after a lost connection or a restart. "
            "It holds what people say: tell them. [default: nothing is saved]",
            metavar="FOLDER",
        ),
    ] = None,
    keep_days: Annotated[
        float | None,
        typer.Option(
            help="Delete saved sessions so many days after their last turn; 0 keeps them. [default: 0]", metavar="DAYS"
        ),
    ] = None,
    tools: ToolFile = None,
    kb: KnowledgeFile = None,
    mcp: McpServers = None,
    expert: ExpertName = None,
    search: SearchName = None,
    mcp_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Host of MCP servers that clients may name (repeatable); * for all. [default: all, while only this "
            "machine can connect]",
            metavar="HOST",
        ),
    ] = None,
    replicas: Annotated[
        int | None,
        typer.Option(help="Number of engines behind one address, each with --slots, on Ray Serve. [default: no Ray]"),
    ] = None,
    max_replicas: Annotated[
        int | None, typer.Option(help="Scale up to this many replicas as slots fill.", metavar="INTEGER")
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(help="Address of a Ray cluster. [default: this machine]", metavar="ADDRESS")
    ] = None,
) -> None:
    """Serve a model over the OpenAI Realtime protocol and REST, with a web page to talk to it.

    Without options it serves `mini` to this machine only. Every setting is also an environment variable (SG2_SLOTS,
    SG2_LIMITS_IDLE_SECONDS, …). Flags override variables, and variables override the file. docs/scaling.md says how
    many replicas a load needs.
    """
    from speechgpt2.server import certificates
    from speechgpt2.server.config import read_config

    flags: dict[str, Any] = {"model": model, "codec": codec, "slots": slots, "host": host, "port": port}
    flags |= {"device": device, "dtype": dtype, "codec_dtype": codec_dtype, "quantize": quantize}
    flags |= {"allow_unauthenticated": allow_unauthenticated}
    flags |= {"api_keys": api_key or None, "allowed_origins": allowed_origin or None}
    flags |= {"greetings": greetings and str(greetings), "greeting_index": greeting_index, "voice": voice}
    flags |= {"ssl_certfile": ssl_certfile, "ssl_keyfile": ssl_keyfile}
    flags |= {
        "audiosocket": audiosocket,
        "wyoming": wyoming,
        "otlp": otlp,
        "log_json": log_json,
        "log_transcripts": log_transcripts,
    }
    scale = {"replicas": replicas, "max_replicas": max_replicas, "cluster": cluster}
    hosted = {
        "functions": tools,
        "knowledge": kb,
        "mcp": mcp,
        "expert": expert,
        "search": search,
        "mcp_hosts": mcp_host,
    }
    flags |= {"persona": persona, "speed": speed, "style": style}
    flags["tools"] = {key: str(v) if isinstance(v, Path) else v for key, v in hosted.items() if v}
    flags["scale"] = {key: value for key, value in scale.items() if value is not None}
    saving = {"folder": sessions and str(sessions), "keep_days": keep_days}
    flags["sessions"] = {key: value for key, value in saving.items() if value is not None}
    if self_signed:
        flags |= self_signed_files(ssl_certfile, host)
    settings = read_config(config, os.environ, flags)
    if settings.ssl_certfile is not None:
        certificates.check(settings.ssl_certfile, settings.ssl_keyfile)
    try:
        from speechgpt2.server import launch
        from speechgpt2.server.logs import log_to_stderr
    except ImportError:
        raise UserError(SERVER_EXTRA) from None

    if settings.scale.replicas == 0:
        launch.check_free(settings.host, settings.port)
        log_to_stderr(settings.log_json)
        with spinner(f"loading {settings.model}"):
            app = load_app(settings)
        launch.run(app)
        return
    try:
        from speechgpt2.scale import deployment
    except ImportError:
        raise UserError(RAY_EXTRA) from None
    if settings.scale.cluster is None:
        launch.check_free(settings.host, settings.port)
    with spinner(f"starting {settings.scale.replicas} replicas of {settings.model}"):
        deployment.start_ray(settings)
        deployment.deploy(settings, load_app)
    deployment.serve_until_signal(settings)


def self_signed_files(ssl_certfile: str | None, host: str | None) -> dict[str, str]:
    """Return the settings for a self-signed certificate, which is made if need be.

    Raises:
        UserError: a certificate is given, too.
    """
    from speechgpt2.server import certificates

    if ssl_certfile is not None:
        raise UserError("--self-signed and --ssl-certfile exclude each other")
    folder = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "speechgpt2" / "tls"
    certificate, key = certificates.self_signed(folder, (host,) if host and host not in ("0.0.0.0", "::") else ())
    return {"ssl_certfile": str(certificate), "ssl_keyfile": str(key)}


def load_app(settings: ServerConfig) -> App:
    """Load the model, start its engine and build the web application.

    Raises:
        UserError: the model cannot be loaded.
    """
    from speechgpt2.duplex.dialogue import Dialogue
    from speechgpt2.engine.engine import Engine
    from speechgpt2.loading import Sources
    from speechgpt2.nn.quantized import Quantization
    from speechgpt2.server import tracing
    from speechgpt2.server.app import App
    from speechgpt2.server.hosted_tools import HostedTools
    from speechgpt2.server.wyoming import require_library
    from speechgpt2.vad import network

    if settings.wyoming is not None:
        require_library()
    spans = tracing.start(settings.otlp, os.environ, settings.model)
    network()
    tools = HostedTools(settings)
    device, precision = common.torch_device(settings.device), common.torch_dtype(settings.dtype)
    sizes = common.engine_config(device, slots=settings.slots, context=settings.context)
    sources = Sources(
        settings.model,
        settings.codec,
        dtype=precision,
        quantization=None if settings.quantize is None else Quantization(settings.quantize),
        greetings=settings.greetings,
        greeting_index=settings.greeting_index,
        voice=settings.voice,
        codec_dtype=common.torch_dtype(settings.codec_dtype),
    )
    engine = Engine.load(sources, device, sizes)
    common.announce_greeting(engine.prompt, settings.model)
    if tools.functions and not engine.calls_tools:
        print_warning(f"{settings.model} was not trained to call tools and answers without them; use a model that was")
    engine.start()
    return App(settings, engine, Dialogue, tools, spans)
