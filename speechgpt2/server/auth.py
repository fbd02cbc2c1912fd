"""Who may talk: API keys, ephemeral client secrets for browsers, and the origins of pages.

A client secret is `ek_` and a signed statement: until when it holds, whose key made it, and the session's settings.
Nothing is stored, so that every replica with the same API keys accepts what any of them handed out.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

PROTOCOL = "realtime"  # the websocket subprotocol, echoed if offered
BROWSER_KEY = "openai-insecure-api-key."  # a browser's websocket can send no header, so the key is a subprotocol
TTL = range(10, 7_201)  # seconds a client secret may hold
DEFAULT_TTL = 600
LARGEST_SECRET = 16_384  # bytes of settings; a secret travels in a header


@dataclass(frozen=True)
class Caller:
    """Who asks: `name` stands for the API key without telling it; `session` are a client secret's settings."""

    name: str
    session: Mapping[str, Any] = field(default_factory=dict)


class Doorkeeper:
    """Knows keys and origins. Without keys everyone is let in, under one name; `signing` is then what client secrets
    are signed with, for replicas that have to agree on it.
    """

    def __init__(
        self,
        keys: Sequence[str],
        origins: Sequence[str],
        clock: Callable[[], float] = time.time,
        signing: bytes | None = None,
    ):
        self._names = {key: "key-" + hashlib.sha256(key.encode()).hexdigest()[:8] for key in keys}
        self._signing = hashlib.sha256(b"client secrets\0" + "\0".join(sorted(keys)).encode()).digest()
        if not keys:
            self._signing = signing or secrets.token_bytes(32)
        self._origins, self._clock = set(origins), clock

    def caller(self, authorization: str | None, subprotocols: Sequence[str] = ()) -> Caller | None:
        """Who a request with these headers is from; None for a wrong, missing or outdated key."""
        key = next((p.removeprefix(BROWSER_KEY) for p in subprotocols if p.startswith(BROWSER_KEY)), None)
        scheme, _, bearer = (authorization or "").partition(" ")
        if scheme.lower() == "bearer" and bearer:
            key = bearer.strip()
        if key is not None and key.startswith("ek_"):
            return self._open_secret(key)
        if not self._names:
            return Caller("anyone")
        known = [name for own, name in self._names.items() if hmac.compare_digest(own.encode(), (key or "").encode())]
        return Caller(known[0]) if known else None

    def mint(self, caller: Caller, session: Mapping[str, Any], seconds: int) -> tuple[str, int]:
        """A client secret for `session`, and when it ends (Unix seconds). Errors: ValueError if it is too long."""
        ends = int(self._clock()) + seconds
        statement = json.dumps({"ends": ends, "name": caller.name, "session": dict(session)}, separators=(",", ":"))
        if len(statement) > LARGEST_SECRET:
            raise ValueError(f"the session's settings exceed {LARGEST_SECRET} bytes")
        body = _text(statement.encode())
        return f"ek_{body}.{self._sign(body)}", ends

    def _open_secret(self, secret: str) -> Caller | None:
        body, _, signature = secret.removeprefix("ek_").partition(".")
        if not hmac.compare_digest(self._sign(body).encode(), signature.encode()):
            return None
        statement = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        if statement["ends"] < self._clock():
            return None
        return Caller(statement["name"], statement["session"])

    def _sign(self, body: str) -> str:
        return _text(hmac.digest(self._signing, body.encode(), "sha256"))

    def welcomes(self, origin: str | None, host: str | None) -> bool:
        """Whether a page from `origin` may connect. Programs send none; the server's own page is always welcome."""
        if origin is None or "*" in self._origins or origin in self._origins:
            return True
        return host is not None and urlsplit(origin).netloc == host


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
