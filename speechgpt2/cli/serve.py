"""`sg2 serve` and `sg2 bench realtime`: a model for many people at once, and how well that goes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from speechgpt2.cli.common import torch_device, torch_dtype, working
from speechgpt2.errors import UserError

SERVER_EXTRA = "serving needs more packages: pip install 'speechgpt2[server]'"


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
) -> None:
    """Serve a model: the OpenAI Realtime protocol, REST, and a page to talk at; without any option, `mini` to this
    machine only.

    Every setting is also an environment variable (SG2_SLOTS, SG2_LIMITS_PER_KEY …); flags go before them, they before
    the file.
    """
    import os

    from speechgpt2.server.config import read

    flags: dict[str, Any] = {"model": model, "codec": codec, "slots": slots, "host": host, "port": port}
    flags |= {"device": device, "dtype": dtype, "open": open_, "api_keys": api_key or None, "origins": origin or None}
    flags |= {"log_json": log_json, "log_words": log_words}
    settings = read(config, os.environ, flags)
    try:
        from speechgpt2.server import launch
        from speechgpt2.server.app import App
        from speechgpt2.server.metrics import log_to_stderr
    except ImportError:
        raise UserError(SERVER_EXTRA) from None
    from speechgpt2.dialogue.dialogue import Dialogue
    from speechgpt2.dialogue.vad import network
    from speechgpt2.engine.config import EngineConfig
    from speechgpt2.engine.engine import Engine

    launch.check_free(settings.host, settings.port)
    log_to_stderr(settings.log_json)
    with working(f"loading {settings.model}"):
        network()
        place, precision = torch_device(settings.device), torch_dtype(settings.dtype)
        sizes = EngineConfig(slots=settings.slots)
        engine = Engine.from_pretrained(settings.model, settings.codec, device=place, dtype=precision, config=sizes)
    engine.start()
    launch.run(App(settings, engine, Dialogue))  # type: ignore[arg-type]


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
        typer.Option(help="A folder of recorded questions; else held-out synthetic ones.", metavar="FOLDER"),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A JSON file; a plot is put beside it.")] = None,
) -> None:
    """Time a server under callers that speak in real time: answers, interruptions, steps, gaps."""
    from speechgpt2.bench import realtime
    from speechgpt2.cli.judge import check_file

    check_file(out)
    realtime.main(url, key, model, sessions, turns, questions, out)
