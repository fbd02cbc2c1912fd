"""What the commands share: options, devices, progress, and one way to speak of errors."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from speechgpt2.errors import UserError

if TYPE_CHECKING:
    import torch

    from speechgpt2.engine.config import EngineConfig

ModelName = Annotated[str, typer.Option(help="Built-in name, folder, or Hugging Face id.", metavar="NAME")]
CodecName = Annotated[
    str | None, typer.Option(help="Another codec: name, folder, id, or a released .pkl.", metavar="NAME")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps …", metavar="DEVICE")]
DType = Annotated[
    Literal["float32", "bfloat16", "float16"] | None,
    typer.Option(help="Precision of the weights; as stored if not given."),
]


def say_error(message: str) -> None:
    """One line on stderr, whatever the message holds."""
    print("error:", " ".join(message.split()), file=sys.stderr)


def torch_device(name: str) -> torch.device:
    """The device `name`; "auto" is the accelerator if there is one, else the CPU. Errors: `UserError` if not usable."""
    import torch

    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch raises any of them
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"device {name} cannot be used here ({reason})") from None
    return device


def torch_dtype(name: str | None) -> torch.dtype | None:
    """The precision `name`, or None."""
    import torch

    return None if name is None else getattr(torch, name)


def load_codec(name: str, device: str) -> Any:
    """The codec `name` on `device`, behind a spinner."""
    with working(f"loading {name}"):
        from speechgpt2.codec.model import Codec

        return Codec.from_pretrained(name, device=torch_device(device))


def load_model(name: str, codec: str | None, device: str, dtype: str | None) -> Any:
    """The whole model `name` on `device`, behind a spinner."""
    with working(f"loading {name}"):
        from speechgpt2.chat import SpeechGPT

        return SpeechGPT.from_pretrained(name, torch_device(device), torch_dtype(dtype), codec)


def engine_config(device: torch.device, **options: Any) -> EngineConfig:
    """An engine on `device`. On a CPU the codec gets a process of its own, and one of the threads for it."""
    import torch

    from speechgpt2.engine.config import EngineConfig

    threads = torch.get_num_threads()
    apart = device.type == "cpu" and threads > 1
    if apart:
        torch.set_num_threads(threads - 1)
    return EngineConfig(codec_process=apart, **options)


@contextmanager
def working(what: str) -> Iterator[None]:
    """A spinner on stderr while the block runs, if that is a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        with console.status(f"{what} …"):
            yield
    else:
        yield


def track(items: list[Any], what: str) -> Iterator[Any]:
    """The items behind a progress bar on stderr, if that is a terminal."""
    from rich.console import Console
    from rich.progress import track as rich_track

    console = Console(stderr=True)
    return iter(rich_track(items, what, console=console, transient=True, disable=not console.is_terminal))


def check_ending(path: Path, *endings: str) -> None:
    """Errors: `UserError` unless the file is named as what it will hold, asked before any work is done."""
    if path.suffix.lower() not in endings:
        raise UserError(f"cannot write {path}: the ending must be {' or '.join(endings)}")
