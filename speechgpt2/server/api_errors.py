"""Errors of HTTP requests in OpenAI's form: `{"error": {message, type, param, code}}`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse


class ApiError(Exception):
    """A request fails with an HTTP status.

    Args:
        status: The HTTP status.
        message: What is wrong, for people.
        code: What is wrong, for programs.
        param: The request's field that is wrong.
        kind: OpenAI's error type.
        headers: More headers of the HTTP response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        param: str | None = None,
        kind: str = "invalid_request_error",
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})
        self.body = {"message": message, "type": kind, "param": param, "code": code}


def error_response(error: ApiError) -> JSONResponse:
    """Return the HTTP response for an error."""
    return JSONResponse({"error": error.body}, error.status, error.headers)


async def handle_api_error(_: Request, error: ApiError) -> JSONResponse:
    """FastAPI's exception handler."""
    return error_response(error)


async def read_body(request: Request, limit: int) -> bytes:
    """Read a request's body.

    Raises:
        ApiError: 413 as soon as it exceeds `limit` bytes.
    """
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise ApiError(413, f"The request exceeds {limit} bytes.", "request_too_large")
        chunks.append(chunk)
    return b"".join(chunks)


async def read_json(request: Request, limit: int) -> dict[str, Any]:
    """Read a request's JSON object; an empty body is an empty object.

    Raises:
        ApiError: The body is too large (413) or not a JSON object (400).
    """
    data = await read_body(request, limit)
    try:
        value = json.loads(data) if data.strip() else {}
    except (ValueError, RecursionError):
        raise ApiError(400, "The body is not valid JSON.", "invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(400, "The body must be a JSON object.", "invalid_json")
    return value
