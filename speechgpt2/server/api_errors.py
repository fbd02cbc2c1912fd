"""Errors of HTTP requests in OpenAI's form, `{"error": {message, type, param, code}}`, and warnings in a header."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from speechgpt2.server.schema import ProtocolError, load_json, validate

log = logging.getLogger("sg2.server")
BODY_SECONDS = 120  # limit of the upload of a body that is held in memory
MAX_WARNING = 1_000  # characters of a header


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


async def handle_http_error(request: Request, error: HTTPException) -> JSONResponse:
    """FastAPI's exception handler for requests without a route: an unknown path, or another method."""
    text = f"{error.detail} ({request.method} {request.url.path})."
    code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    return error_response(ApiError(error.status_code, text, code, headers=error.headers))


async def handle_failure(_: Request, error: Exception) -> JSONResponse:
    """FastAPI's exception handler for bugs of this server, which the log has with their traceback."""
    return error_response(ApiError(500, "The server failed to process this.", "server_error", kind="server_error"))


async def read_body(request: Request, limit: int) -> bytes:
    """Read a request's body.

    Raises:
        ApiError: 413 as soon as it exceeds `limit` bytes, 408 after `BODY_SECONDS`.
    """

    async def read() -> bytes:
        chunks, size = [], 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                raise ApiError(413, f"The request exceeds {limit} bytes.", "request_too_large")
            chunks.append(chunk)
        return b"".join(chunks)

    try:
        return await asyncio.wait_for(read(), BODY_SECONDS)
    except asyncio.TimeoutError:
        raise ApiError(408, f"The request did not arrive within {BODY_SECONDS} s.", "request_timeout") from None


async def read_json(request: Request, limit: int) -> dict[str, Any]:
    """Read a request's JSON object; an empty body is an empty object.

    Raises:
        ApiError: The body is too large (413) or not a JSON object (400).
    """
    data = await read_body(request, limit)
    try:
        value = load_json(data) if data.strip() else {}
    except (ValueError, RecursionError):
        raise ApiError(400, "The body is not valid JSON.", "invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(400, "The body must be a JSON object.", "invalid_json")
    return value


def warning_headers(warnings: Sequence[str]) -> dict[str, str]:
    """Return the headers with warnings, of fields without effect or of the result, and log them."""
    if not warnings:
        return {}
    log.warning("a request was answered with warnings", extra={"fields": {"warnings": list(warnings)}})
    text = " ".join("; ".join(warnings).split()).replace("\\", "/").replace('"', "'")
    return {"Warning": f'299 speechgpt2 "{text.encode("ascii", "backslashreplace").decode()[:MAX_WARNING]}"'}


def validate_request(model: type[Any], body: Any) -> Any:
    """Validate a request's body against a pydantic model.

    Raises:
        ApiError: A field is invalid; names it.
    """
    try:
        return validate(model, body)
    except ProtocolError as error:
        raise ApiError(400, str(error), error.code, error.param) from None
