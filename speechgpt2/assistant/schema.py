"""Python types as JSON schemas, and JSON values as values of these types.

json_schema(list[int], "counts")                   # {"type": "array", "items": {"type": "integer"}}
from_json(Color, "red")                            # Color.RED
"""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import types
import typing
from typing import Annotated, Any, Literal

from speechgpt2.errors import UserError

SCALARS: dict[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
LISTS = (list, collections.abc.Sequence, collections.abc.Iterable)
DICTS = (dict, collections.abc.Mapping)
NOT_REQUIRED = getattr(typing, "NotRequired", None)  # since Python 3.11
REQUIRED = getattr(typing, "Required", None)


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of a dataclass or a TypedDict."""

    name: str
    hint: Any
    required: bool
    default: Any = dataclasses.field(default_factory=lambda: dataclasses.MISSING)


def json_schema(hint: Any, where: str, inside: tuple[Any, ...] = ()) -> dict[str, Any]:
    """Describe a type hint as a JSON schema (draft 2020-12).

    Args:
        hint: The type: str, int, float, bool, None, Any, Literal, an Enum of texts or integers, a union of scalars,
            Optional, list, dict with text keys, a dataclass or a TypedDict. `Annotated[T, "text"]` adds a description.
        where: What is described, for error messages.
        inside: The dataclasses and TypedDicts around it.

    Raises:
        UserError: The type cannot be expressed.
    """
    if hint is Any:
        return {}
    if isinstance(hint, type(None)) or (isinstance(hint, type) and hint in SCALARS):
        return {"type": SCALARS.get(hint, "null")}
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        texts = [extra for extra in args[1:] if isinstance(extra, str)]
        return {**json_schema(args[0], where, inside), **({"description": texts[0]} if texts else {})}
    if origin in (typing.Union, types.UnionType):
        return _union_schema(args, where, inside)
    if origin is Literal or (isinstance(hint, type) and issubclass(hint, enum.Enum)):
        return _choice_schema(args if origin is Literal else [member.value for member in hint], where)
    if (origin or hint) in LISTS:
        return {"type": "array", **({"items": json_schema(args[0], f"{where}[]", inside)} if args else {})}
    if (origin or hint) in DICTS:
        if args and args[0] is not str:
            raise UserError(f"{where}: the keys of a dict must be str, as those of a JSON object are")
        values = {"additionalProperties": json_schema(args[1], f"{where}[…]", inside)} if args else {}
        return {"type": "object", **values}
    if _has_fields(hint):
        return _object_schema(hint, where, inside)
    raise UserError(
        f"{where}: the type {_name(hint)} has no JSON schema; use str, int, float, bool, Literal, Enum, Optional, "
        "list, dict, a dataclass or a TypedDict"
    )


def from_json(hint: Any, value: Any) -> Any:
    """Convert a JSON value, which satisfies the hint's schema, to a value of the hint's type."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return from_json(args[0], value)
    if origin in (typing.Union, types.UnionType):
        return value if value is None or _is_scalar_union(args) else from_json(_without_none(args)[0], value)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return hint(value)
    if hint in (int, float) and not isinstance(value, bool):
        return hint(value)  # a JSON number 3.0 is an integer, 3 is a number
    if (origin or hint) in LISTS:
        return [from_json(args[0], item) for item in value] if args else value
    if (origin or hint) in DICTS:
        return {key: from_json(args[1], item) for key, item in value.items()} if args else value
    if _has_fields(hint):
        hints = {field.name: field.hint for field in fields_of(hint)}
        return hint(**{key: from_json(hints[key], item) for key, item in value.items()})
    return value


def to_json(value: Any) -> Any:
    """Convert a value to plain dicts, lists and scalars.

    Raises:
        TypeError: JSON cannot express it.
    """
    if isinstance(value, enum.Enum):
        return value.value
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, collections.abc.Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_json(item) for item in value]
    raise TypeError(f"{type(value).__name__} is not a JSON value")


def fields_of(cls: Any) -> list[Field]:
    """The fields of a dataclass (those of its `__init__`) or a TypedDict."""
    hints = typing.get_type_hints(cls, include_extras=True)
    if dataclasses.is_dataclass(cls):
        return [Field(f.name, hints[f.name], _is_required(f), f.default) for f in dataclasses.fields(cls) if f.init]
    fields = []
    for name, hint in hints.items():
        marker = typing.get_origin(hint)
        required = name in cls.__required_keys__
        if marker is not None and marker in (NOT_REQUIRED, REQUIRED):
            hint, required = typing.get_args(hint)[0], marker is REQUIRED
        fields.append(Field(name, hint, required))
    return fields


def _is_required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _has_fields(hint: Any) -> bool:
    return isinstance(hint, type) and (dataclasses.is_dataclass(hint) or typing.is_typeddict(hint))


def _object_schema(cls: Any, where: str, inside: tuple[Any, ...]) -> dict[str, Any]:
    if cls in inside:
        raise UserError(f"{where}: {cls.__name__} contains itself, which a tool's schema cannot express")
    properties, required = {}, []
    for field in fields_of(cls):
        schema = json_schema(field.hint, f"{where}.{field.name}", (*inside, cls))
        properties[field.name] = with_default(schema, field.default)
        required += [field.name] if field.required else []
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def with_default(schema: dict[str, Any], default: Any) -> dict[str, Any]:
    """Add a default value to a schema; one that JSON cannot express is left out."""
    if default is dataclasses.MISSING:
        return schema
    try:
        return {**schema, "default": to_json(default)}
    except TypeError:
        return schema


def _union_schema(args: tuple[Any, ...], where: str, inside: tuple[Any, ...]) -> dict[str, Any]:
    if not _is_scalar_union(args) and len(_without_none(args)) > 1:
        raise UserError(f"{where}: a union of several types must hold scalars only (str, int, float, bool, None)")
    return {"anyOf": [json_schema(arg, where, inside) for arg in args]}


def _choice_schema(values: typing.Iterable[Any], where: str) -> dict[str, Any]:
    values = list(values)
    kinds = sorted({SCALARS.get(type(value), "") for value in values})
    if "" in kinds:
        raise UserError(f"{where}: the values of a Literal or an Enum must be texts, numbers, booleans or None")
    return {"type": kinds[0] if len(kinds) == 1 else kinds, "enum": values}


def _is_scalar_union(args: tuple[Any, ...]) -> bool:
    return all(arg in SCALARS for arg in args)


def _without_none(args: tuple[Any, ...]) -> list[Any]:
    return [arg for arg in args if arg is not type(None)]


def _name(hint: Any) -> str:
    return getattr(hint, "__name__", None) or str(hint)
