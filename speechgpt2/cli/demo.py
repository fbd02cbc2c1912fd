"""`sg2 demo`: the Gradio demo, with its own server or a running one."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from speechgpt2.cli import common
from speechgpt2.cli.common import Device, DType, GreetingIndex, Greetings, Quantize, VoiceName, spinner
from speechgpt2.cli.serve import SERVER_EXTRA
from speechgpt2.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from speechgpt2.codec.model import Codec
    from speechgpt2.demo.greetings import Greeting
    from speechgpt2.engine.engine import Engine

DEMO_EXTRA = "the demo needs more packages: pip install 'speechgpt2[demo]'"
START_TIMEOUT = 20.0  # seconds from the loaded model to a listening server


def demo(
    model: Annotated[str, typer.Option("--model_path", "--model", help=common.MODEL_HELP, metavar="NAME")] = "mini",
    codec: Annotated[
        str | None, typer.Option("--codec_ckpt_path", "--codec", help=common.CODEC_HELP, metavar="NAME")
    ] = None,
    codec_config: Annotated[
        Path | None, typer.Option("--codec_config_path", help="The YAML file of a released codec.", metavar="FILE")
    ] = None,
    greetings: Greetings = None,
    greeting_index: GreetingIndex = None,
    voice: VoiceName = None,
    url: Annotated[
        str | None, typer.Option(help="A running server. [default: start one on this machine]", metavar="URL")
    ] = None,
    key: Annotated[str | None, typer.Option(help="API key of the server.", envvar="SG2_API_KEY", metavar="KEY")] = None,
    sessions: Annotated[
        Path | None,
        typer.Option(help="Save conversations here; each browser lists its own. [default: none]", metavar="FOLDER"),
    ] = None,
    keep_days: Annotated[
        float, typer.Option(min=0, help="Days for which they are kept; 0: for good.", metavar="DAYS")
    ] = 0.0,
    slots: Annotated[int, typer.Option(min=1, help="Maximum number of concurrent sessions.", metavar="N")] = 8,
    host: Annotated[str, typer.Option(help="Address of the page; 0.0.0.0 for the network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the page.", metavar="N")] = 7860,
    device: Device = "auto",
    dtype: DType = None,
    quantize: Quantize = None,
) -> None:
    """Start a Gradio page with the four modes and greetings; each visitor has an own conversation.

    The page asks for no API key: everyone who reaches its address can use the model.
    """
    check_gradio()
    from speechgpt2.server.config import is_loopback
    from speechgpt2.server.launch import check_free

    check_free(host, port)
    if codec_config is not None and codec is None:
        raise UserError("--codec_config_path belongs to a released codec: also give --codec_ckpt_path")
    chosen = {"greetings": greetings, "greeting_index": greeting_index, "voice": voice}
    common.check_one_greeting(voice=voice, greeting_index=greeting_index)
    if url is not None:
        if any(option is not None for option in chosen.values()):
            raise UserError("greetings are the server's: give --greetings, --greeting-index or --voice to sg2 serve")
        if sessions is not None:
            raise UserError("conversations are the server's: give --sessions to sg2 serve")
        return show(page_of(url, key, server_greetings(url, key), reachable=True), host, port)
    if greetings is not None and not greetings.is_file():
        raise UserError(f"{greetings}: no such file")
    check_server()
    with spinner(f"loading {codec or model}"):
        loaded = load_codec(codec or model, codec_config, device)
    with spinner(f"loading {model}"):
        engine = load_engine(loaded, model, slots, device, dtype, quantize, **chosen)
    common.announce_greeting(engine.prompt, model)
    offered = offered_greetings(engine, loaded)
    reachable, origins = is_loopback(host), (f"http://{host}:{port}", f"http://localhost:{port}")
    with serving(engine, model, slots, sessions, keep_days, origins) as address:
        show(page_of(address, None, offered, reachable, framed=reachable), host, port)


def check_gradio() -> None:
    """Check before a model is loaded that the page can be served.

    Raises:
        UserError: ffmpeg or a package is missing.
    """
    if shutil.which("ffmpeg") is None:
        raise UserError("the demo streams audio through ffmpeg, which is not installed (Debian: apt install ffmpeg)")
    try:
        import gradio  # noqa: F401
        import websockets  # noqa: F401
    except ImportError:
        raise UserError(DEMO_EXTRA) from None


def page_of(url: str, key: str | None, greetings: Sequence[Greeting], reachable: bool, framed: bool = False) -> Any:
    """Build the page before a server, with the examples that it offers.

    Args:
        url: The server.
        key: An API key.
        greetings: Greetings to choose from.
        reachable: Whether visitors can open the server's own page.
        framed: Whether that may be shown in a frame.

    Raises:
        UserError: There is no server.
    """
    from speechgpt2.client import ask_server, http_url
    from speechgpt2.demo.app import build_page
    from speechgpt2.demo.connection import ServerAddress

    offer = ask_server(url, "page-config", key) or {}  # other servers of the protocol have none
    address = ServerAddress(url, key, saves=offer.get("saves_sessions", False), keep_days=offer.get("keep_days", 0.0))
    live_page = http_url(url) if reachable and offer else None
    return build_page(address, greetings, examples=offer.get("examples", ()), live_page=live_page, framed=framed)


def show(blocks: Any, host: str, port: int) -> None:
    """Serve the page until SIGINT or SIGTERM."""
    from speechgpt2.demo.app import launch

    done = threading.Event()
    address = launch(blocks, host, port)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: done.set())
    print(f"the demo is at {address}", flush=True)
    done.wait()
    blocks.close(verbose=False)


def check_server() -> None:
    """Check before a model is loaded that the server can start.

    Raises:
        UserError: a package is missing.
    """
    try:
        import speechgpt2.server.app  # noqa: F401
        from speechgpt2.vad import network

        network()
    except ImportError:
        raise UserError(SERVER_EXTRA) from None


def load_codec(name: str, config: Path | None, device: str) -> Codec:
    """Load the codec.

    Args:
        name: built-in name, folder, Hugging Face id or a released .pkl file.
        config: the YAML file of a released codec.
        device: the device's name.

    Raises:
        UserError: it cannot be loaded.
    """
    from speechgpt2.loading import Sources

    return Sources(name, codec_config=config).load_codec(common.torch_device(device))


def load_engine(
    codec: Codec,
    model: str,
    slots: int,
    device: str,
    dtype: str | None,
    quantize: Literal["int8", "int4"] | None,
    **greeting: Any,
) -> Engine:
    """Load the language model and start an engine on it and the codec.

    Raises:
        UserError: it cannot be loaded, or the sessions do not fit.
    """
    from speechgpt2 import loading
    from speechgpt2.engine.engine import Engine
    from speechgpt2.lm.checkpoint import open_checkpoint
    from speechgpt2.nn.quantized import Quantization

    torch_device = common.torch_device(device)
    config = common.engine_config(torch_device, slots=slots)
    quantization = None if quantize is None else Quantization(quantize)
    sources = loading.Sources(model, dtype=common.torch_dtype(dtype), quantization=quantization, **greeting)
    checkpoint = open_checkpoint(model)
    with loading.memory_errors(torch_device):
        loading.check_fits(sources, checkpoint, codec, torch_device, slots, config.context)
        engine = Engine(codec, sources.load_lm(checkpoint, torch_device), config)
    engine.start()
    return engine


@contextmanager
def serving(
    engine: Engine, model: str, slots: int, sessions: Path | None, keep_days: float, framing_origins: tuple[str, ...]
) -> Iterator[str]:
    """Run a server on a free port of this machine until the block ends.

    Yields:
        Its URL.
    """
    from speechgpt2.duplex.dialogue import Dialogue
    from speechgpt2.server import launch
    from speechgpt2.server.app import App
    from speechgpt2.server.config import ServerConfig, SessionsConfig

    saved = SessionsConfig(None if sessions is None else str(sessions), keep_days)
    config = ServerConfig(model=model, slots=slots, port=0, sessions=saved, framing_origins=framing_origins)
    app = App(config, engine, Dialogue)
    server = launch.DrainingServer(launch.uvicorn_config(app, config), app)
    thread = threading.Thread(target=server.run, name="server", daemon=True)
    thread.start()
    try:
        end = time.monotonic() + START_TIMEOUT
        while not server.started:
            if not thread.is_alive() or time.monotonic() > end:
                raise UserError("the server did not start; see the messages above")
            time.sleep(0.02)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(START_TIMEOUT)


def offered_greetings(engine: Engine, codec: Codec) -> list[Greeting]:
    """Return the engine's greetings, decoded by the codec when they are played."""
    import torch

    from speechgpt2.demo.greetings import Greeting

    device = next(codec.parameters()).device

    def decode(codes: Any) -> np.ndarray:
        return codec.decode(torch.as_tensor(codes, device=device)[None])[0].cpu().numpy()

    greetings = engine.prompt.greetings.speech
    return [Greeting(name, s.text or "", partial(decode, s.codes)) for name, s in greetings.items()]


def server_greetings(url: str, key: str | None) -> list[Greeting]:
    """Return the greetings of a running server.

    Raises:
        UserError: there is no server, or it rejects the key.
    """
    from speechgpt2.client import list_voices
    from speechgpt2.demo.greetings import Greeting

    return [Greeting(voice["id"], voice["text"]) for voice in list_voices(url, key)]
