"""Common parts of the commands: options, devices, progress display and error output."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from speechgpt2.errors import FileWarning, SpeechWarning, UserError

if TYPE_CHECKING:
    import torch

    from speechgpt2.codec.model import Codec
    from speechgpt2.engine.config import EngineConfig
    from speechgpt2.lm.prompt import Prompt

MODEL_HELP = "Built-in name, folder or Hugging Face id."
CODEC_HELP = "Another codec: built-in name, folder, Hugging Face id or a released .pkl file. [default: the model's own]"
DEVICE_HELP = "auto, cpu, cuda, cuda:1, mps, …"

ModelName = Annotated[str, typer.Option(help=MODEL_HELP, metavar="NAME")]
CodecName = Annotated[str | None, typer.Option(help=CODEC_HELP, metavar="NAME")]
Device = Annotated[str, typer.Option(help=DEVICE_HELP, metavar="DEVICE")]
DType = Annotated[
    Literal["float32", "bfloat16", "float16"] | None,
    typer.Option(
        help="Precision of the weights: float32, bfloat16 or float16. "
        "[default: as stored; bfloat16 for the released layout]",
        metavar="DTYPE",
    ),
]
CodecDType = Annotated[
    Literal["float32", "bfloat16"] | None,
    typer.Option(
        help="Precision of the codec's decoder: float32, or bfloat16, which is faster and adds a little noise. "
        "[default: as stored]",
        metavar="DTYPE",
    ),
]
Quantize = Annotated[
    Literal["int8", "int4"] | None,
    typer.Option(help="Store matrices of the language model in 8 or 4 bits. [default: no]"),
]

Greetings = Annotated[
    Path | None,
    typer.Option(
        help="A JSON lines file of greetings in the released format: the model's voices. "
        "[default: greetings.jsonl in the model's folder]",
        metavar="FILE",
    ),
]
GreetingIndex = Annotated[
    int | None,
    typer.Option(
        min=0, help="Index of the greeting that opens a conversation, from 0. [default: as the file says]", metavar="N"
    ),
]
VoiceName = Annotated[
    str | None,
    typer.Option(
        "--voice",
        help="Name of the greeting that sets the voice. [default: as the model's greetings say]",
        metavar="NAME",
    ),
]


def print_error(message: str) -> None:
    """Print one line on stderr, with newlines in the message replaced by spaces."""
    print("error:", " ".join(message.split()), file=sys.stderr)


def print_warning(message: str) -> None:
    """Print one line on stderr: the command goes on, but its result may not be the expected one."""
    print("warning:", " ".join(message.split()), file=sys.stderr)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table on a terminal, and tab-separated lines without a header into a pipe or file.

    Every cell is whole. Those of the last two columns, which hold texts, go on in the next line where they are long.
    """
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        for row in rows:
            print(*row, sep="\t")
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for number, column in enumerate(columns):
        table.add_column(column, no_wrap=number < len(columns) - 2, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)


def show_warnings() -> None:
    """Print warnings for users by `print_warning`; those for developers stay as they are."""
    showwarning = warnings.showwarning

    def show(message: Any, category: Any, *args: Any, **options: Any) -> None:
        if issubclass(category, (FileWarning, SpeechWarning)):
            print_warning(str(message))
        else:
            showwarning(message, category, *args, **options)

    warnings.showwarning = show


def torch_device(name: str) -> torch.device:
    """Return the device of that name.

    Args:
        name: a torch device; "auto" is CUDA, else Apple's GPU (MPS), else the CPU, and says which on a terminal.

    Raises:
        UserError: the device cannot be used on this machine.
    """
    import torch

    if name == "auto":
        return pick_device()
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch raises any of them
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"device {name} cannot be used on this machine ({reason}); try --device auto") from None
    return device


@cache
def pick_device() -> torch.device:
    """Return the fastest device that works, and say which: CUDA, then MPS, then the CPU.

    A device that PyTorch lists but that fails is left out with a warning.
    """
    import torch

    for name, listed in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available())):
        if not listed:
            continue
        try:
            block = torch.ones(2, 2, device=name)
            works = float((block @ block).sum()) == 8.0
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            works, reason = False, str(error).splitlines()[0]
        else:
            reason = "it computes wrong results"
        if works:
            return _announce(torch.device(name))
        print_warning(f"device {name} is left out: {reason}")
    return _announce(torch.device("cpu"))


def _announce(device: torch.device) -> torch.device:
    """Print the chosen device if stderr is a terminal; returns the device."""
    import torch

    name = f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type
    if sys.stderr.isatty():
        print(f"device: {name}", file=sys.stderr)
    return device


def torch_dtype(name: str | None) -> torch.dtype | None:
    """Return the torch dtype of that name; None stays None."""
    import torch

    return None if name is None else getattr(torch, name)


def load_codec(name: str, device: str) -> Codec:
    """Load the codec `name` on `device` while a spinner shows."""
    with spinner(f"loading {name}"):
        from speechgpt2.codec.model import Codec

        return Codec.from_pretrained(name, device=torch_device(device))


def announce_greeting(prompt: Prompt, model: str) -> None:
    """Warn which greeting opens conversations with a released model that has no file of greetings."""
    greetings = prompt.greetings
    if greetings.built_in and greetings.default is not None:
        text = greetings.speech[greetings.default].text
        print_warning(
            f"no greetings.jsonl in {model}: conversations open with the released greeting {greetings.default}, "
            f"'{text}'; choose another with --greeting-index or --greetings FILE"
        )
    elif greetings.default is None and not prompt.template.chain_of_modality:
        print_warning(
            f"no greetings.jsonl in {model}: conversations open without a greeting, which the released model never "
            "saw in training; give --greetings FILE"
        )


def check_one_greeting(**options: Any) -> None:
    """Check that at most one of these options chooses the greeting.

    Raises:
        UserError: two do.
    """
    chosen = [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]
    if len(chosen) > 1:
        raise UserError(f"give one of {' and '.join(chosen)}")


def engine_config(device: torch.device, **options: Any) -> EngineConfig:
    """Configure an engine for `device`.

    On a CPU with several threads the codec runs in its own process and takes one of the threads.
    """
    import torch

    from speechgpt2.engine.config import EngineConfig

    threads = torch.get_num_threads()
    codec_process = device.type == "cpu" and threads > 1
    if codec_process:
        torch.set_num_threads(threads - 1)
    return EngineConfig(codec_process=codec_process, **options)


@contextmanager
def spinner(text: str) -> Iterator[Callable[[str], None]]:
    """Show a spinner on stderr while the block runs, if stderr is a terminal. The block may change its text."""
    from rich.console import Console
    from rich.live import Live
    from rich.spinner import Spinner

    console, indicator = Console(stderr=True), Spinner("dots", f"{text} …")
    if not console.is_terminal:
        yield lambda text: None
        return
    with Live(indicator, console=console, transient=True, refresh_per_second=4, redirect_stdout=sys.stdout.isatty()):
        yield lambda text: indicator.update(text=f"{text} …")


def with_progress(items: list[Any], description: str) -> Iterator[Any]:
    """Iterate over `items` with a progress bar on stderr, if stderr is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    # If stdout is a file, lines that are printed meanwhile must not go to the terminal with the bar.
    redirect, hidden = sys.stdout.isatty(), not console.is_terminal
    columns = Progress.get_default_columns()
    with Progress(*columns, console=console, transient=True, disable=hidden, redirect_stdout=redirect) as progress:
        yield from progress.track(items, description=description)


def check_suffix(path: Path, *suffixes: str) -> None:
    """Check an output file's suffix before any work is done.

    Raises:
        UserError: the suffix is none of `suffixes`.
    """
    if path.suffix.lower() not in suffixes:
        raise UserError(f"cannot write {path}: the file name must end in {' or '.join(suffixes)}")


def check_report_file(out: Path | None) -> None:
    """Check before the measurement that its JSON report can be written.

    Raises:
        UserError: the file cannot be written, or is not named *.json.
    """
    from speechgpt2 import hub

    if out is not None:
        hub.check_writable(out)
        check_suffix(out, ".json")
