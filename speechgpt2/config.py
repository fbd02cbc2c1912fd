"""Frozen dataclasses to and from YAML or JSON, strictly.

A configuration is a tree of frozen dataclasses, declared beside the class it configures. Reading checks every key and
type: an unknown key is a `UserError` that names the nearest known one. Where a field is a union of dataclasses, a key
`kind` tells them apart; each such class declares `kind: Literal["…"]`. A class may declare `FORMER_NAMES`, the keys of
older files with their present names.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml

from speechgpt2 import hub
from speechgpt2.errors import UserError

C = TypeVar("C")
MAX_BYTES = 16 * 2**20  # of a file; a larger one is something else


def from_dict(cls: type[C], values: Any, where: str = "") -> C:
    """Build the dataclass `cls` from plain dicts and lists.

    Args:
        cls: A frozen dataclass.
        values: The content.
        where: What errors call it; by default the name of the class.

    Raises:
        UserError: If a key is unknown, missing or of the wrong type.
    """
    name = where or cls.__name__
    if not isinstance(values, dict):
        raise UserError(f"{name}: expected a mapping of keys, got {type(values).__name__}")
    former = getattr(cls, "FORMER_NAMES", {})
    values = {former.get(key, key): value for key, value in values.items()}
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1, cutoff=0)
            raise UserError(f"{name}: unknown key {key!r}; did you mean '{near[0]}'?")
    hints = typing.get_type_hints(cls)
    known = {key: _convert(hints[key], value, f"{name}.{key}") for key, value in values.items()}
    absent = [f.name for f in fields.values() if f.name not in known and not _has_default(f)]
    if absent:
        raise UserError(f"{name}: missing key '{absent[0]}'")
    try:
        return cls(**known)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def to_dict(config: Any) -> dict[str, Any]:
    """Return plain dicts, lists and scalars, the inverse of `from_dict`."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return [plain(item) for item in value] if isinstance(value, (tuple, list)) else value

    return plain(config)


def load(cls: type[C], path: str | Path) -> C:
    """Read a YAML or JSON file (JSON is YAML). Raises `UserError`, which names the file."""
    return from_dict(cls, read(path), Path(path).name)


def read(path: str | Path) -> Any:
    """Return the plain content of a YAML or JSON file.

    Raises:
        UserError: If it is absent, not a regular file, too large or not YAML.
    """
    file_path = Path(path)
    if hub.is_special(file_path):
        raise UserError(f"{path}: not a regular file (a pipe or a device); write the configuration to a file first")
    try:
        with file_path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise UserError(f"{path}: is larger than {MAX_BYTES} bytes, so it is not a configuration")
        return yaml.safe_load(data.decode("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except RecursionError:
        raise UserError(f"{path}: cannot be read as YAML (it is nested too deeply)") from None
    except (yaml.YAMLError, ValueError, OSError) as error:  # ValueError: a date that does not exist, or no UTF-8
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: cannot be read as YAML ({str(error).splitlines()[0]})") from None


def dump(config: Any, path: str | Path) -> None:
    """Write JSON or YAML, by the file's suffix."""
    values, path = to_dict(config), Path(path)
    if path.suffix == ".json":
        text = json.dumps(values, indent=2) + "\n"
    else:
        text = yaml.safe_dump(values, sort_keys=False, default_flow_style=None)
    path.write_text(text, encoding="utf-8")


def _has_default(field: dataclasses.Field) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(args, value, where)
    if origin is typing.Literal:
        if value not in args:
            raise UserError(f"{where}: expected one of {', '.join(map(str, args))}, got {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{where}: expected a list, got {value!r}")
        return tuple(_convert(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict) or not all(isinstance(key, args[0]) for key in value):
            raise UserError(f"{where}: expected a mapping, got {value!r}")
        return {key: _convert(args[1], item, f"{where}[{key!r}]") for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else from_dict(hint, value, where)  # type: ignore[arg-type]
    return _convert_scalar(hint, value, where)


def _convert_union(args: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in args:
        return None
    options = [arg for arg in args if arg is not type(None)]
    if len(options) == 1:
        return _convert(options[0], value, where)
    kinds = {typing.get_args(typing.get_type_hints(option)["kind"])[0]: option for option in options}
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    if kind not in kinds:
        raise UserError(f"{where}: needs a key 'kind', one of {', '.join(kinds)}")
    return _convert(kinds[kind], value, where)


def _convert_scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, str):  # YAML 1.1 reads 1e-4 as text
        try:
            return float(value)
        except ValueError:
            pass
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise UserError(f"{where}: expected {hint.__name__}, got {value!r}")
    return value
