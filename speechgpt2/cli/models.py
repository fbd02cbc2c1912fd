"""`sg2 info` and `sg2 convert`: what a checkpoint holds, and released checkpoints in our format."""

from __future__ import annotations

import math
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from speechgpt2.cli.common import DType, torch_dtype, working
from speechgpt2.errors import UserError

PARTS = ("codec", "lm")  # a checkpoint holds one or both, each as NAME.json and NAME.safetensors
PICKLES = (".pkl", ".pt", ".pth", ".ckpt")

Checkpoint = Annotated[str, typer.Argument(help="Built-in name, folder, or Hugging Face id.", metavar="NAME")]
Tensors = Annotated[bool, typer.Option("--tensors", help="List every tensor with its shape.")]
Source = Annotated[Path, typer.Argument(help="A released codec's .pkl, or a language model's folder.", metavar="SRC")]
Target = Annotated[Path, typer.Argument(help="A new folder.", metavar="DST")]
Yaml = Annotated[Path | None, typer.Option("--config", help="The released codec's YAML, if not beside it.")]


def info(name: Checkpoint, tensors: Tensors = False) -> None:
    """Show what a checkpoint is made of: parameters, sizes, shapes, licence."""
    from speechgpt2 import hub

    folder = hub.resolve(name, *(f"{part}.json" for part in PARTS)).parent
    show({"folder": str(folder), "licence": licence(folder) or "not stated"})
    for part in PARTS:
        if (folder / f"{part}.json").is_file():
            print(f"\n{part}")
            show(describe(folder, part, tensors))


def show(rows: dict[str, str]) -> None:
    """Two columns, as plain text: it is read by people and by grep."""
    width = max(map(len, rows))
    for key, value in rows.items():
        print(f"  {key:{width}}  {value}")


def describe(folder: Path, part: str, tensors: bool) -> dict[str, str]:
    """One part of the checkpoint: totals, configuration, and each tensor if asked for."""
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
    """A configuration's value on one line: `a=1 b=2` for a section."""
    if isinstance(value, dict):
        return " ".join(f"{key}={_inline(inner)}" for key, inner in value.items())
    return repr(value) if isinstance(value, str) else str(value).replace(" ", "")


def licence(folder: Path) -> str | None:
    """What the model card (the front matter of README.md) states, or None."""
    import yaml

    try:
        _, front, _ = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
        stated = yaml.safe_load(front)
    except (OSError, ValueError, yaml.YAMLError):  # no card, or none with front matter
        return None
    return str(stated["license"]) if isinstance(stated, dict) and "license" in stated else None


def convert(src: Source, dst: Target, config: Yaml = None, dtype: DType = None) -> None:
    """Convert a released codec or language model into a folder of ours, or change what one of ours is stored in.

    A codec and a language model may share a folder: DST may exist if it lacks this part.
    """
    if not src.exists():
        raise UserError(f"{src}: no such file or folder")
    is_codec = src.suffix in PICKLES or (src / "codec.json").is_file()
    if dst.exists() and (not dst.is_dir() or (dst / f"{PARTS[not is_codec]}.json").exists()):
        raise UserError(f"cannot write {dst}: it exists already")
    with working(f"converting {src}"):
        if is_codec:
            from speechgpt2.codec.model import Codec

            save = Codec.from_pretrained(src, config=config).save_pretrained
        else:
            from speechgpt2.lm.model import SpeechLM

            save = SpeechLM.from_pretrained(src).save_pretrained
        write_folder(dst, lambda folder: save(folder, torch_dtype(dtype)))
    print(f"{dst}: {'codec' if is_codec else 'language model'}")


def write_folder(target: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary folder, then move its files to `target`; on any failure nothing is left."""
    scratch = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        write(scratch)
        target.mkdir(parents=True, exist_ok=True)
        for file in scratch.iterdir():
            os.replace(file, target / file.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
