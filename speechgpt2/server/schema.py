"""Validation of client data with pydantic; an error names the field, as OpenAI's API does.

A known field with an invalid value is an error. An unknown field is accepted, since newer clients send them, and so is
a known one that this server does not implement (`NoEffect`). `ineffective` lists both, for a warning to the client.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError


class ProtocolError(Exception):
    """A client's message cannot be processed. The client gets an error event; the session continues.

    Attributes:
        code: OpenAI's error code.
        param: The field that is wrong.
        kind: OpenAI's error type.
        event_id: The client's id of a message that could not be parsed.
    """

    def __init__(
        self,
        message: str,
        code: str = "invalid_value",
        param: str | None = None,
        kind: str = "invalid_request_error",
    ):
        super().__init__(message)
        self.code, self.param, self.kind = code, param, kind
        self.event_id: str | None = None


class WireModel(BaseModel):
    """Base class of everything that a client sends."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


@dataclass(frozen=True)
class NoEffect:
    """Marks a field that is accepted without effect: `Annotated[str, NoEffect("the model has one voice")]`."""

    reason: str


def ineffective(parsed: Any, values: Any, path: str = "") -> list[str]:
    """List the fields of a client's message that change nothing.

    Args:
        parsed: A `WireModel`, or the value of one of its fields.
        values: The JSON that it was parsed from.
        path: Path of `values` in the client's message.

    Returns:
        A line for each field, with its path.
    """
    if isinstance(parsed, list) and isinstance(values, list):
        return [line for n, pair in enumerate(zip(parsed, values)) for line in ineffective(*pair, f"{path}[{n}]")]
    if not isinstance(parsed, WireModel) or not isinstance(values, dict):
        return []
    found, fields = [], type(parsed).model_fields
    for key, value in values.items():
        place = f"{path}.{key}" if path else key
        if key not in fields:
            if value is not None:
                found.append(f"{shorten(place)[1:-1]} is unknown to this server and has no effect")
            continue
        reason = next((mark.reason for mark in fields[key].metadata if isinstance(mark, NoEffect)), None)
        if reason is None:
            found += ineffective(getattr(parsed, key), value, place)
        elif value is not None and value != fields[key].default:
            found.append(f"{place} has no effect: {reason}")
    return found


def load_json(text: str | bytes) -> Any:
    """Parse JSON. Half a surrogate pair, which JSON can hold and UTF-8 cannot, becomes a question mark.

    Raises:
        ValueError, RecursionError: It is not JSON, or nested too deeply.
    """
    value = json.loads(text)
    if (b"\\ud" if isinstance(text, bytes) else "\\ud") in text.lower():  # type: ignore[operator]
        value = json.loads(json.dumps(value, ensure_ascii=False).encode(errors="replace"))
    return value


def parse_json(text: str | bytes) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        ProtocolError: The text is not a JSON object.
    """
    try:
        value = load_json(text)
    except (ValueError, RecursionError):
        raise ProtocolError("The message is not valid JSON.", "invalid_json") from None
    if not isinstance(value, dict):
        raise ProtocolError("The message must be a JSON object.", "invalid_json")
    return value


def validate(model: type[Any], values: Any, prefix: str = "") -> Any:
    """Validate `values` against a pydantic model.

    Args:
        model: A `WireModel`.
        values: Parsed JSON.
        prefix: Path of `values` in the client's message, for error messages.

    Raises:
        ProtocolError: For the first invalid field; names its path.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        missing = first["type"] == "missing"
        param = _field_path(prefix, first["loc"], values, missing)
        code = "missing_required_parameter" if missing else "invalid_value"
        got = "" if missing else f" (got {shorten(first['input'])})"
        raise ProtocolError(f"{param}: {first['msg']}{got}.", code, param) from None


def _field_path(prefix: str, location: tuple[int | str, ...], values: Any, missing: bool) -> str:
    """Return the path of a field as the client wrote it.

    pydantic's location also contains the names of union branches: all steps that are neither a key nor an index.
    """
    path = prefix
    for number, step in enumerate(location):
        if isinstance(values, list) and isinstance(step, int):
            path, values = f"{path}[{step}]", values[step]
        elif isinstance(values, dict) and (step in values or (missing and number == len(location) - 1)):
            path, values = f"{path}.{step}" if path else str(step), values.get(step)
    return path


def shorten(value: Any) -> str:
    """Format a value as JSON of at most 60 characters, for error messages."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "…"
