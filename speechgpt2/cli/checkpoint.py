"""`sg2 info` and `sg2 convert`: the contents of a checkpoint, and conversion between formats and precisions."""

from __future__ import annotations

import math
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from speechgpt2.cli.common import MODEL_HELP, DType, spinner, torch_dtype
from speechgpt2.errors import UserError

# A checkpoint holds one or both parts, each as NAME.json and NAME.safetensors.
PARTS = ("codec", "lm")
PICKLES = (".pkl", ".pt", ".pth", ".ckpt")

Checkpoint = Annotated[str, typer.Argument(help=MODEL_HELP, metavar="NAME")]
Tensors = Annotated[bool, typer.Option("--tensors", help="Also list every tensor with its precision and shape.")]
Source = Annotated[Path, typer.Argument(help="A released codec's .pkl file, or a model folder.", metavar="SRC")]
Target = Annotated[Path, typer.Argument(help="The folder to write.", metavar="DST")]
Yaml = Annotated[
    Path | None, typer.Option("--config", help="The released codec's YAML file. [default: next to the .pkl file]")
]


def info(name: Checkpoint, tensors: Tensors = False) -> None:
    """Show a checkpoint's parameters, sizes, configuration and licence."""
    from speechgpt2 import hub

    folder = hub.resolve(name, *(f"{part}.json" for part in PARTS)).parent
    show({"folder": str(folder), "licence": licence(folder) or "not stated"})
    for part in PARTS:
        if (folder / f"{part}.json").is_file():
            print(f"\n{part}")
            show(describe(folder, part, tensors))


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


def convert(src: Source, dst: Target, config: Yaml = None, dtype: DType = None) -> None:
    """Convert a released codec or language model to this project's format, or store a model in another precision.

    A codec and a language model may share a folder: DST may exist if it lacks this part.
    """
    if not src.exists():
        raise UserError(f"{src}: no such file or folder")
    is_codec = src.suffix in PICKLES or (src / "codec.json").is_file()
    if dst.exists() and (not dst.is_dir() or (dst / f"{PARTS[not is_codec]}.json").exists()):
        raise UserError(f"cannot write {dst}: it already exists")
    with spinner(f"converting {src}"):
        if is_codec:
            from speechgpt2.codec.model import Codec

            save = Codec.from_pretrained(src, config=config).save_pretrained
        else:
            from speechgpt2.lm.model import SpeechLM

            save = SpeechLM.from_pretrained(src).save_pretrained
        write_folder(dst, lambda folder: save(folder, torch_dtype(dtype)))
    print(f"{dst}: {'codec' if is_codec else 'language model'}")


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
