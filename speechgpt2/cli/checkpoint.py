"""`sg2 info` and `sg2 convert`: the contents of a checkpoint, and conversion between formats and precisions."""

from __future__ import annotations

import dataclasses
import math
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from speechgpt2.cli.common import MODEL_HELP, DType, Quantize, spinner, torch_device, torch_dtype
from speechgpt2.cli.options import LoadOptions, with_shared_options
from speechgpt2.errors import UserError

if TYPE_CHECKING:
    from speechgpt2.lm.model import SpeechLM

# A checkpoint holds one or both parts, each as NAME.json and NAME.safetensors.
PARTS = {"codec": "codec", "lm": "language model"}
PICKLES = (".pkl", ".pt", ".pth", ".ckpt")

Checkpoint = Annotated[str, typer.Argument(help=MODEL_HELP, metavar="NAME")]
Tensors = Annotated[bool, typer.Option("--tensors", help="Also list every tensor with its precision and shape.")]
Source = Annotated[Path, typer.Argument(help="A released codec's .pkl file, or a model folder.", metavar="SRC")]
Target = Annotated[Path, typer.Argument(help="The folder to write.", metavar="DST")]
Group = Annotated[int, typer.Option(help="Inputs that share a scale in int4: 32 or 128.")]
Calibrate = Annotated[
    list[Path],
    typer.Option(
        help="With --quantize: round so that predictions of this text change least (repeatable). Takes minutes.",
        metavar="FILE",
    ),
]
Yaml = Annotated[
    Path | None, typer.Option("--config", help="The released codec's YAML file. [default: next to the .pkl file]")
]


Plan = Annotated[bool, typer.Option("--plan", help="Show the model's memory on a device, and how many sessions fit.")]
Slots = Annotated[int, typer.Option(min=1, help="With --plan: number of concurrent sessions.")]
Context = Annotated[int, typer.Option(min=1, help="With --plan: patches (120 ms) in the context of each session.")]


@with_shared_options
def info(
    name: Checkpoint,
    tensors: Tensors = False,
    plan: Plan = False,
    *,
    loading: LoadOptions,
    slots: Slots = 8,
    context: Context = 1024,
) -> None:
    """Show a checkpoint's parameters, sizes, configuration and licence, or with --plan its memory on this machine."""
    from speechgpt2 import hub

    if plan:
        show(memory(name, loading, slots, context))
        return
    folder = hub.resolve(name, *(f"{part}.json" for part in PARTS), "config.json", "*.pkl").parent
    show({"folder": str(folder), "licence": licence(folder) or "not stated"})
    for part in PARTS:
        if (folder / f"{part}.json").is_file():
            print(f"\n{part}")
            show(describe(folder, part, tensors))
    if (folder / "config.json").is_file():
        print("\nlm, released layout")
        show(describe_released(folder, tensors))
    elif not any((folder / f"{part}.json").is_file() for part in PARTS):
        print("\ncodec, released layout: --plan shows its size")


def memory(name: str, loading: LoadOptions, slots: int, context: int) -> dict[str, str]:
    """Describe the memory of a model and its codec on a device."""
    from speechgpt2.loading import RUNTIME, plan
    from speechgpt2.nn.native import native_kernels

    with spinner(f"reading {name}"):
        needs = plan(loading.sources(name), torch_device(loading.device))
    rows = {
        "device": needs.device,
        "free": "not known" if needs.free is None else f"{needs.free / 1e9:.2f} GB",
        "language model": f"{needs.lm / 1e9:.2f} GB of weights",
        "codec": f"{needs.codec / 1e9:.2f} GB of weights",
        "runtime": f"about {RUNTIME / 1e9:.1f} GB",
        "session": f"{needs.session / 1e6:.1f} MB of codec states + {needs.patch / 1e3:.1f} kB a patch of context",
        f"{slots} sessions": f"{needs.total(slots, context) / 1e9:.2f} GB with {context} patches each",
    }
    if needs.free is not None:
        rows["fits"] = (
            "yes" if needs.fits(slots, context) else "no; try --quantize, fewer --slots or a shorter --context"
        )
        rows["sessions"] = f"up to {needs.sessions(context)} with {context} patches each"
        rows["context"] = f"up to {needs.context(slots)} patches in each of {slots} sessions"
    if needs.device == "cpu":
        slower = "PyTorch's; those in C, which are faster, need a C compiler and AVX2"
        rows["kernels"] = slower if native_kernels() is None else "in C"
    return rows


def describe_released(folder: Path, tensors: bool) -> dict[str, str]:
    """Describe a language model in the released layout."""
    from speechgpt2.lm.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(folder)
    parameters = sum(math.prod(tensor.shape) for tensor in checkpoint.tensors.values())
    kinds = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in checkpoint.tensors.values()})
    rows = {"parameters": f"{parameters / 1e6:.2f} M in {len(checkpoint.tensors)} tensors, {' '.join(kinds)}"}
    rows |= {"config": _inline(dataclasses.asdict(checkpoint.config))}
    if tensors:
        rows |= {name: f"{t.dtype} {list(t.shape)}" for name, t in checkpoint.tensors.items()}
    return rows


def show(rows: dict[str, str]) -> None:
    """Print two columns as plain text, for people and for grep."""
    width = max(map(len, rows))
    for key, value in rows.items():
        print(f"  {key:{width}}  {value}")


def describe(folder: Path, part: str, tensors: bool) -> dict[str, str]:
    """Describe one part of a checkpoint: totals, configuration, and each tensor if asked for."""
    from speechgpt2 import config, hub

    weights = folder / f"{part}.safetensors"
    listed = hub.list_tensors(weights)
    parameters = sum(math.prod(tensor.shape) for tensor in listed.values())
    rows = {
        "parameters": f"{parameters / 1e6:.2f} M in {len(listed)} tensors",
        "file": f"{weights.stat().st_size / 1e6:.1f} MB, {' '.join(sorted({t.dtype for t in listed.values()}))}",
    }
    rows |= {key: _inline(value) for key, value in config.read(folder / f"{part}.json").items()}
    if tensors:
        rows |= {name: f"{tensor.dtype} {list(tensor.shape)}" for name, tensor in listed.items()}
    return rows


def _inline(value: object) -> str:
    """Format a configuration value on one line: `a=1 b=2` for a section."""
    if isinstance(value, dict):
        return " ".join(f"{key}={_inline(inner)}" for key, inner in value.items())
    return repr(value) if isinstance(value, str) else str(value).replace(" ", "")


def licence(folder: Path) -> str | None:
    """Read the licence from the model card (the front matter of README.md); None if it states none."""
    import yaml

    try:
        _, front, _ = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
        stated = yaml.safe_load(front)
    except (OSError, ValueError, yaml.YAMLError):  # no card, or none with front matter
        return None
    return str(stated["license"]) if isinstance(stated, dict) and "license" in stated else None


def convert(
    src: Source,
    dst: Target,
    config: Yaml = None,
    dtype: DType = None,
    quantize: Quantize = None,
    group: Group = 32,
    calibrate: Calibrate = [],  # noqa: B006 (typer reads it only)
) -> None:
    """Convert a released codec or language model to this project's format, or store a model in another precision.

    A codec and a language model may share a folder: both are converted, and DST may exist if it lacks what SRC holds.
    With --quantize the matrices of the language model are stored in 8 or 4 bits; such a folder is mapped when it is
    loaded, so int4 is ready at once. With --calibrate less is lost by that; the model in bfloat16 must fit into memory.
    """
    if not src.exists():
        raise UserError(f"{src}: no such file or folder")
    parts = _parts(src)
    if dst.exists() and (not dst.is_dir() or any((dst / f"{part}.json").exists() for part in parts)):
        raise UserError(f"cannot write {dst}: it already exists")
    if "lm" not in parts and quantize is not None:
        raise UserError("--quantize is for language models; the codec stays as it is")
    if "codec" not in parts and config is not None:
        raise UserError(f"--config is for a released codec, which {src} does not hold")
    if calibrate and quantize is None:
        raise UserError("--calibrate says how to round; give --quantize int8 or int4 with it")
    with spinner(f"converting {src}") as show_progress:

        def write(folder: Path) -> None:
            if "codec" in parts:
                from speechgpt2.codec.model import Codec

                Codec.from_pretrained(src, config=config).save_pretrained(folder, torch_dtype(dtype))
            if "lm" in parts:
                lm = _converted_lm(src, dtype, quantize, group, calibrate, show_progress)
                lm.save_pretrained(folder, None if quantize else torch_dtype(dtype))
            card = src / "README.md"
            if card.is_file():  # it states the licence of the weights
                shutil.copyfile(card, folder / card.name)

        write_folder(dst, write)
    print(f"{dst}: {' and '.join(PARTS[part] for part in parts)}")


def _parts(src: Path) -> list[str]:
    """Return which of `PARTS` a file or folder holds. Of one that holds none, reading a language model says what is."""
    codec = src.suffix in PICKLES or (src / "codec.json").is_file() or (src.is_dir() and any(src.glob("*.pkl")))
    lm = (src / "lm.json").is_file() or (src / "config.json").is_file()
    return [part for part, found in (("codec", codec), ("lm", lm or not codec)) if found]


def _converted_lm(
    src: Path, dtype: DType, quantize: Quantize, group: int, calibrate: list[Path], progress: Callable[[str], None]
) -> SpeechLM:
    """Load a language model in the precision to store."""
    import torch

    from speechgpt2 import hub
    from speechgpt2.lm.calibration import calibration_sequences, quantize_on
    from speechgpt2.lm.checkpoint import open_checkpoint
    from speechgpt2.lm.model import load
    from speechgpt2.nn.quantized import Quantization

    quantization = None if quantize is None else Quantization(quantize, group)
    checkpoint, precision = open_checkpoint(src), torch_dtype(dtype)
    if quantization is not None and calibrate:
        if checkpoint.quantization is not None:
            raise UserError(f"{src}: already quantized; give the model from which it was made")
        texts = [hub.read_text(path) for path in calibrate]
        lm = load(checkpoint, torch.bfloat16)
        quantize_on(lm, quantization, calibration_sequences(lm, texts), progress)
        return lm
    if precision is None and quantization is None and checkpoint.quantization is None:
        precision = next(tensor.dtype for tensor in checkpoint.tensors.values())  # as it is stored
    return load(checkpoint, precision, quantization=quantization, arrange=False)


def write_folder(target: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary folder, then move its files to `target`. A failure leaves nothing behind."""
    scratch = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        write(scratch)
        target.mkdir(parents=True, exist_ok=True)
        for file in scratch.iterdir():
            os.replace(file, target / file.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
