"""`sg2 serve`, `sg2 bench realtime`, `sg2 bench soak`: a model for many people at once, and how well that goes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from speechgpt2.cli.common import engine_config, torch_device, torch_dtype, working
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
    model: Annotated[
        str | None, typer.Option(help="Built-in name, folder, or Hugging Face id.", metavar="NAME")
    ] = None,
    codec: Annotated[str | None, typer.Option(help="Another codec, as for chat.", metavar="NAME")] = None,
    slots: Annotated[int | None, typer.Option(help="People at once.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; 0.0.0.0 for the network.")] = None,
    port: Annotated[int | None, typer.Option(help="0: any that is free.")] = None,
    api_key: Annotated[
        list[str] | None, typer.Option(help="A key that lets in; may be given several times.", metavar="KEY")
    ] = None,
    open_: Annotated[bool | None, typer.Option("--open", help="Serve the network without keys.")] = None,
    origin: Annotated[
        list[str] | None, typer.Option(help="Pages from there may connect; * for all.", metavar="ORIGIN")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps …", metavar="DEVICE")] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None, typer.Option(help="Precision of the weights.")
    ] = None,
    log_json: Annotated[bool | None, typer.Option("--log-json", help="Log as JSON lines.")] = None,
    log_words: Annotated[bool | None, typer.Option("--log-words", help="Log what is said, too.")] = None,
    replicas: Annotated[
        int | None, typer.Option(help="Engines behind the one address, each with --slots, on Ray Serve.")
    ] = None,
    max_replicas: Annotated[
        int | None, typer.Option(help="Start more, up to so many, as slots fill up.", metavar="INTEGER")
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(help="A Ray cluster to run them on; else this machine.", metavar="ADDRESS")
    ] = None,
) -> None:
    """Serve a model: the OpenAI Realtime protocol, REST, and a page to talk at; without any option, `mini` to this
    machine only.

    Every setting is also an environment variable (SG2_SLOTS, SG2_LIMITS_PER_KEY …); flags go before them, they before
    the file. `--replicas 2` serves twice the people with twice the processors or devices: docs/scaling.md tells how
    many are needed.
    """
    import os

    from speechgpt2.server.config import read

    flags: dict[str, Any] = {"model": model, "codec": codec, "slots": slots, "host": host, "port": port}
    flags |= {"device": device, "dtype": dtype, "open": open_, "api_keys": api_key or None, "origins": origin or None}
    flags |= {"log_json": log_json, "log_words": log_words}
    scale = {"replicas": replicas, "most": max_replicas, "cluster": cluster}
    flags["scale"] = {key: value for key, value in scale.items() if value is not None}
    settings = read(config, os.environ, flags)
    try:
        from speechgpt2.server import launch
        from speechgpt2.server.metrics import log_to_stderr
    except ImportError:
        raise UserError(SERVER_EXTRA) from None

    if settings.scale.replicas == 0:
        launch.check_free(settings.host, settings.port)
        log_to_stderr(settings.log_json)
        with working(f"loading {settings.model}"):
            app = load_app(settings)
        launch.run(app)
        return
    try:
        from speechgpt2.scale import deployment
    except ImportError:
        raise UserError(RAY_EXTRA) from None
    if settings.scale.cluster is None:
        launch.check_free(settings.host, settings.port)
    with working(f"starting {settings.scale.replicas} replicas of {settings.model}"):
        deployment.start(settings)
        deployment.deploy(settings, load_app)
    deployment.wait(settings)


def load_app(settings: ServerConfig) -> App:
    """The application over a model that is loaded and at work. Errors: `UserError`."""
    from speechgpt2.duplex.dialogue import Dialogue
    from speechgpt2.engine.engine import Engine
    from speechgpt2.server.app import App
    from speechgpt2.vad import network

    network()
    place, precision = torch_device(settings.device), torch_dtype(settings.dtype)
    sizes = engine_config(place, slots=settings.slots, context=settings.context)
    engine = Engine.from_pretrained(settings.model, settings.codec, device=place, dtype=precision, config=sizes)
    engine.start()
    return App(settings, engine, Dialogue)


def bench_realtime(
    url: Annotated[str | None, typer.Option(help="A server that runs already; else one is started.")] = None,
    key: Annotated[str | None, typer.Option(help="An API key.", envvar="SG2_API_KEY", metavar="KEY")] = None,
    model: Annotated[str, typer.Option(help="What to serve.", metavar="NAME")] = "mini",
    sessions: Annotated[
        list[int], typer.Option("--sessions", "-n", min=1, help="Callers at once; may be given several times.")
    ] = [1, 2, 4, 8, 16, 32],  # noqa: B006 (typer reads it only)
    turns: Annotated[
        int, typer.Option(min=1, help="Questions of each caller; every second answer is interrupted.")
    ] = 6,
    questions: Annotated[
        Path | None,
        typer.Option(
            help="A folder of recorded questions (.wav, .flac); else two shipped ones.",
            metavar="FOLDER",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A JSON file; a plot is put beside it.")] = None,
) -> None:
    """Time a server under callers that speak in real time: answers, interruptions, steps, gaps."""
    from speechgpt2.bench import realtime
    from speechgpt2.cli.judge import check_file

    check_file(out)
    realtime.main(url, key, model, sessions, turns, questions, out)


def bench_soak(
    minutes: Annotated[float, typer.Option(min=0.5, help="How long guests come and go.")] = 30.0,
    slots: Annotated[int, typer.Option(min=1, help="People at once; one guest more wants to come in.")] = 4,
    model: Annotated[str, typer.Option(help="What to serve.", metavar="NAME")] = "mini",
    questions: Annotated[
        Path | None,
        typer.Option(
            help="A folder of recorded questions (.wav, .flac); else two shipped ones.",
            metavar="FOLDER",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed, other guests.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A JSON file.", metavar="FILE")] = None,
) -> None:
    """Does a server stay well? Guests come and go at random, half of them badly behaved; at last it is told to stop.

    Exit code 1 if a slot was lost, memory grew, a well-behaved guest was disturbed, or the server did not drain.
    """
    from speechgpt2.bench import soak
    from speechgpt2.cli.judge import check_file

    check_file(out)
    if soak.main(minutes, slots, model, questions, seed, out).wrong:
        raise typer.Exit(1)
