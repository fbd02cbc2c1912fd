"""JSON over HTTP for tools, with limits of time and size and without redirects. Errors are one sentence."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from speechgpt2.errors import UserError

MAX_BYTES = 1_000_000  # of a reply


def check_address(url: str, server: str) -> str:
    """Return `url` if it is an http or https address.

    Raises:
        UserError: It is not. The message has the `server` of the address.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"{url!r}: the address of {server} must begin with http:// or https://")
    return url


def exchange(url: str, server: str, timeout: float, body: Any = None, headers: Mapping[str, str] | None = None) -> Any:
    """Send a request and return the JSON of the reply.

    Args:
        url: The address.
        server: The server's name in messages, such as "the expert".
        timeout: Seconds to wait for each part of the reply.
        body: Sent as JSON by POST; None sends a GET request.
        headers: Added to the request.

    Raises:
        RuntimeError: The address cannot be reached, refuses, is too slow, or sends no JSON or too much.
    """
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **(headers or {})})
    try:
        with _OPENER.open(request, timeout=timeout) as response:
            received = response.read(MAX_BYTES + 1)
    except urllib.error.HTTPError as error:
        with error:
            raise RuntimeError(f"{server} answered with HTTP status {error.code}") from None
    except TimeoutError:
        raise RuntimeError(f"{server} gave no answer within {timeout:g} seconds") from None
    except OSError as error:
        raise RuntimeError(f"{server} cannot be reached ({error})") from None
    if len(received) > MAX_BYTES:
        raise RuntimeError(f"the reply of {server} is too long")
    try:
        return json.loads(received)
    except (ValueError, RecursionError):
        raise RuntimeError(f"{server} did not reply with JSON") from None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would carry a key to another address."""

    def redirect_request(self, *arguments: Any, **options: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirects)
