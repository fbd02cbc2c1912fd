"""`sg2 demo`: the Gradio demo, before a server of its own or one that runs already."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from speechgpt2.cli.common import Device, DType, engine_config, torch_device, torch_dtype, working
from speechgpt2.cli.serve import SERVER_EXTRA
from speechgpt2.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from speechgpt2.codec.model import Codec
    from speechgpt2.demo.greetings import Greeting
    from speechgpt2.engine.engine import Engine

DEMO_EXTRA = "the demo needs more packages: pip install 'speechgpt2[demo]'"
STARTING = 20.0  # seconds that a server may take to listen, once its model is loaded


def demo(
    model: Annotated[
        str, typer.Option("--model_path", "--model", help="Built-in name, folder, or Hugging Face id.", metavar="NAME")
    ] = "mini",
    codec: Annotated[
        str | None,
        typer.Option("--codec_ckpt_path", "--codec", help="Another codec, or a released .pkl.", metavar="NAME"),
    ] = None,
    codec_config: Annotated[
        Path | None, typer.Option("--codec_config_path", help="The YAML file of a released codec.", metavar="FILE")
    ] = None,
    greetings: Annotated[
        Path | None, typer.Option(help="JSON lines of greetings to choose from, as released.", metavar="FILE")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="A server that runs already; else one is started.", metavar="URL")
    ] = None,
    key: Annotated[str | None, typer.Option(help="An API key of it.", envvar="SG2_API_KEY", metavar="KEY")] = None,
    slots: Annotated[int, typer.Option(min=1, help="People at once.")] = 8,
    host: Annotated[str, typer.Option(help="Address of the page; 0.0.0.0 for the network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the page.")] = 7860,
    device: Device = "auto",
    dtype: DType = None,
) -> None:
    """Show a model to visitors: a page with the four modes, greetings, and each visitor's own talk.

    The page has no keys: whoever reaches its address may talk.
    """
    app = gradio_app()
    from speechgpt2.demo.talk import Wire
    from speechgpt2.server.launch import check_free

    check_free(host, port)
    if codec_config is not None and codec is None:
        raise UserError("--codec_config_path belongs to a released codec: give --codec_ckpt_path, too")
    if greetings is not None and not greetings.is_file():
        raise UserError(f"{greetings}: no such file")
    if url is None:
        check_server()
    elif greetings is None:
        return show(app.page(Wire(url, key)), host, port)
    with working(f"loading {codec or model}"):
        ears = load_codec(codec or model, codec_config, device)
    chosen = read_greetings(greetings, ears, model) if greetings else []
    if url is not None:
        return show(app.page(Wire(url, key), chosen), host, port)
    with working(f"loading {model}"):
        engine = load_engine(ears, model, slots, device, dtype)
    with serving(engine, model, slots) as address:
        show(app.page(Wire(address), chosen), host, port)


def gradio_app() -> Any:
    """The demo's page. Errors: `UserError` if what it needs is not installed, found out before a model is loaded."""
    if shutil.which("ffmpeg") is None:
        raise UserError("the demo streams sound through ffmpeg, which is not installed (Debian: apt install ffmpeg)")
    try:
        import gradio  # noqa: F401
        import websockets  # noqa: F401
    except ImportError:
        raise UserError(DEMO_EXTRA) from None
    from speechgpt2.demo import app

    return app


def show(blocks: Any, host: str, port: int) -> None:
    """Serve the page until a signal comes."""
    from speechgpt2.demo.app import launch

    done = threading.Event()
    address = launch(blocks, host, port)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: done.set())
    print(f"the demo is at {address}", flush=True)
    done.wait()
    blocks.close(verbose=False)


def check_server() -> None:
    """Errors: `UserError` if what the server needs is not installed, found out before a model is loaded."""
    try:
        import speechgpt2.server.app  # noqa: F401
        from speechgpt2.vad import network

        network()
    except ImportError:
        raise UserError(SERVER_EXTRA) from None


def load_codec(name: str, config: Path | None, device: str) -> Codec:
    """The codec. Errors: `UserError`."""
    from speechgpt2.codec.model import Codec

    return Codec.from_pretrained(name, config=config, device=torch_device(device))


def load_engine(codec: Codec, model: str, slots: int, device: str, dtype: str | None) -> Engine:
    """The model with that codec, at work. Errors: `UserError`."""
    from speechgpt2.engine.engine import Engine
    from speechgpt2.lm.model import SpeechLM

    place = torch_device(device)
    lm = SpeechLM.from_pretrained(model, dtype=torch_dtype(dtype), device=place)
    engine = Engine(codec, lm, engine_config(place, slots=slots))
    engine.start()
    return engine


@contextmanager
def serving(engine: Engine, model: str, slots: int) -> Iterator[str]:
    """A server on a free port of this machine, until the block ends; yields its address."""
    from speechgpt2.duplex.dialogue import Dialogue
    from speechgpt2.server import launch
    from speechgpt2.server.app import App
    from speechgpt2.server.config import ServerConfig

    config = ServerConfig(model=model, slots=slots, port=0)
    app = App(config, engine, Dialogue)
    server = launch.Server(launch.uvicorn_config(app, config), app)
    thread = threading.Thread(target=server.run, name="server", daemon=True)
    thread.start()
    try:
        end = time.monotonic() + STARTING
        while not server.started:
            if not thread.is_alive() or time.monotonic() > end:
                raise UserError("the server did not start")
            time.sleep(0.02)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(STARTING)


def read_greetings(path: Path, codec: Codec, model: str) -> list[Greeting]:
    """The greetings in `path`, in the words of the model's tokenizer and the codec's sound. Errors: `UserError`."""
    import torch

    from speechgpt2 import hub
    from speechgpt2.demo.greetings import read
    from speechgpt2.lm.config import PromptConfig

    tokenizer = hub.load_tokenizer(hub.resolve(model, "tokenizer.json").parent)
    silent = {tokenizer.token_to_id(name) for name in (PromptConfig.filler, PromptConfig.last_filler)}

    def words(ids: list[int]) -> str:
        spoken = [id for id in ids if id not in silent]
        unknown = [id for id in spoken if tokenizer.id_to_token(id) is None]
        if unknown:
            raise UserError(f"{model} knows no token {unknown[0]}; greetings belong to the model they were made for")
        return tokenizer.decode(spoken).strip()

    def sound(codes: np.ndarray) -> np.ndarray:
        place = next(codec.parameters()).device
        return codec.decode(torch.as_tensor(codes, device=place)[None])[0].cpu().numpy()

    return read(path, codec.config.quantizer.codebooks, codec.config.quantizer.size, words, sound)
