"""Writes results: a list of dataclass rows becomes a printed table, Markdown, or JSON.

A field made with `column("STOI", ".3f")` is shown under that title in that format; other fields go to the JSON only.
"""

from __future__ import annotations

import dataclasses
import json
import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from speechgpt2.errors import UserError
from speechgpt2.nn.native import native_kernels, processor_facts


def column(title: str, form: str = "", default: Any = dataclasses.MISSING) -> Any:
    """Return a dataclass field with a title and a format (as of `format`) for tables."""
    return dataclasses.field(default=default, metadata={"title": title, "form": form})


def _cells(row: Any) -> list[str]:
    return [_text(getattr(row, f.name), f.metadata["form"]) for f in dataclasses.fields(row) if f.metadata]


def _titles(row: Any) -> list[str]:
    return [f.metadata["title"] for f in dataclasses.fields(row) if f.metadata]


def _text(value: Any, form: str) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, (tuple, list)):
        return " / ".join(_text(item, form) for item in value)
    return format(value, form)


def show(title: str, rows: Sequence[Any], console: Console | None = None) -> None:
    """Print rows of one dataclass: on a terminal as a table, into a pipe or a file separated by tabs."""
    if not rows:
        return
    console = console or Console()
    if not console.is_terminal:
        lines = [[f"# {title}"], _titles(rows[0]), *map(_cells, rows)]
        console.file.write("".join("\t".join(line) + "\n" for line in lines))
        return
    table = Table(title=title, title_justify="left")
    for name in _titles(rows[0]):
        table.add_column(name, justify="left" if not table.columns else "right", overflow="fold")
    for row in rows:
        table.add_row(*_cells(row))
    console.print(table)


def markdown_table(rows: Sequence[Any]) -> str:
    """Return the table of `show` in Markdown."""
    if not rows:
        return ""
    lines = [_titles(rows[0]), ["---"] + ["---:"] * (len(_titles(rows[0])) - 1), *map(_cells, rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def publish(tables: Mapping[str, Sequence[Any]], console: Console, out: str | Path | None, **content: Any) -> None:
    """Print tables by their titles; if `out` is given, also write them and `content` to this JSON file."""
    for title, rows in tables.items():
        show(title, rows, console)
    if out is not None:
        save_json(Path(out), **content, tables=tables)


def publish_evaluation(
    name: str,
    tables: Mapping[str, Sequence[Any]],
    notes: Sequence[str],
    console: Console,
    folder: Path | None,
    /,
    **content: Any,
) -> None:
    """Print the tables of an evaluation and the notes below them; write NAME.json and NAME.md.

    Args:
        name: The evaluation's name.
        tables: Rows by the title of their table.
        notes: A line for each missing judge.
        console: Where to print.
        folder: Where to write; None: nowhere.
        content: What the JSON file holds, besides the notes.
    """
    for title, rows in tables.items():
        show(title, rows, console)
    for note in notes:
        console.print(note, markup=False)
    if folder is not None:
        save_json(folder / f"{name}.json", **content, notes=notes)
        parts = [f"**{title}**\n\n{markdown_table(rows)}" for title, rows in tables.items() if rows]
        text = "\n".join([*parts, *(f"{note}\n" for note in notes)])
        (folder / f"{name}.md").write_text(text, encoding="utf-8")


def save_json(path: Path, **content: Any) -> None:
    """Write `{"machine": …, **content}` with dataclasses as objects; what could not be measured is null."""
    content = {"machine": machine(), **content}
    path.write_text(json.dumps(_json_value(content), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    """Return the facts that a time depends on: processor, threads, version, kernels of a step (`nn.native`)."""
    name = processor_facts().get("model name") or platform.processor() or platform.machine()
    kernels = "PyTorch" if native_kernels() is None else "C"
    return {"processor": name, "threads": torch.get_num_threads(), "torch": torch.__version__, "kernels": kernels}


def make_folder(out: str | Path | None) -> Path | None:
    """Create the folder `out` if it does not exist; None for none.

    Raises:
        UserError: It cannot be created.
    """
    if out is None:
        return None
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be made a folder ({error.strerror})") from None
    return Path(out)


def _json_value(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, dict):
        return {key: _json_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_value(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
