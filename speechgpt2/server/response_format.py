"""The form of a written reply: free text, JSON, or JSON of a schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from speechgpt2.server.api_errors import ApiError


def response_schema(format: Mapping[str, Any] | None, param: str, speaks: bool = False) -> dict[str, Any] | None:
    """Return the schema that the text of a reply follows; None for free text.

    Args:
        format: `response_format` of a chat completion, or `text.format` of a response, which has one level less.
        param: The field, for error messages.
        speaks: Whether the reply is spoken.

    Raises:
        ApiError: The form is unknown, its schema is missing, or the reply is spoken.
    """
    kind = "text" if format is None else format.get("type")
    if format is None or kind == "text":
        return None
    if kind not in ("json_object", "json_schema"):
        raise ApiError(400, f"{param}.type must be text, json_object or json_schema.", "invalid_value", f"{param}.type")
    if speaks:
        raise ApiError(400, f"{param} of JSON is supported for written replies only.", "unsupported_value", param)
    if kind == "json_object":
        return {"type": "object"}
    nested = "json_schema" in format
    schema = format["json_schema"] if nested else format
    schema = schema.get("schema") if isinstance(schema, Mapping) else None
    if not isinstance(schema, dict):
        path = f"{param}.json_schema.schema" if nested else f"{param}.schema"
        raise ApiError(400, f"{path} must be a JSON schema.", "missing_required_parameter", path)
    return schema
