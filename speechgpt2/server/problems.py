"""What a plain request is told when it cannot be done, in OpenAI's shape: `{"error": {message, type, param, code}}`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse


class Problem(Exception):
    """A request cannot be done; becomes an HTTP answer with `status`."""

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
        self.error = {"message": message, "type": kind, "param": param, "code": code}


def as_response(problem: Problem) -> JSONResponse:
    """The answer."""
    return JSONResponse({"error": problem.error}, problem.status, problem.headers)


async def answer_problem(_: Request, problem: Problem) -> JSONResponse:
    """For FastAPI."""
    return as_response(problem)


async def read_body(request: Request, limit: int) -> bytes:
    """A request's body. Errors: `Problem` 413 beyond `limit` bytes, found out before more is read."""
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise Problem(413, f"The request exceeds {limit} bytes.", "request_too_large")
        chunks.append(chunk)
    return b"".join(chunks)


async def read_json(request: Request, limit: int) -> dict[str, Any]:
    """A request's JSON object; an empty body is an empty one. Errors: `Problem`."""
    data = await read_body(request, limit)
    try:
        value = json.loads(data) if data.strip() else {}
    except (ValueError, RecursionError):
        raise Problem(400, "The body is not valid JSON.", "invalid_json") from None
    if not isinstance(value, dict):
        raise Problem(400, "The body must be a JSON object.", "invalid_json")
    return value
