"""Authentication: API keys, client secrets for browsers, and the origins of pages.

A client secret is `ek_` and a signed JSON object: expiry time, id of the API key, and the session's settings. The
server stores nothing, so every replica with the same API keys accepts it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

SUBPROTOCOL = "realtime"  # the WebSocket subprotocol, echoed if offered
BROWSER_KEY = "openai-insecure-api-key."  # a browser's WebSocket cannot set headers, so the key is a subprotocol
TTL_RANGE = range(10, 7_201)  # seconds a client secret may be valid
DEFAULT_TTL = 600
MAX_SECRET = 16_384  # bytes of settings in a client secret, which travels in a header


@dataclass(frozen=True)
class Principal:
    """An authenticated client.

    Attributes:
        key_id: Identifies its API key without revealing it.
        session: Session settings from its client secret.
        by_secret: Whether it has a client secret, and no API key.
    """

    key_id: str
    session: Mapping[str, Any] = field(default_factory=dict)
    by_secret: bool = False


class Authenticator:
    """Checks API keys, client secrets and origins.

    Args:
        keys: The accepted API keys. Without keys everyone is accepted, as one principal.
        origins: Origins of pages that may connect; "*" for all.
        clock: Unix time in seconds.
        hosts: Names of the server that keyless clients may use besides addresses and localhost; "*" for all.
        signing_key: Signs client secrets where there are no API keys; replicas must share it. Random by default.
    """

    def __init__(
        self,
        keys: Sequence[str],
        origins: Sequence[str],
        clock: Callable[[], float] = time.time,
        signing_key: bytes | None = None,
        hosts: Sequence[str] = (),
    ):
        self._key_ids = {key: "key-" + hashlib.sha256(key.encode()).hexdigest()[:8] for key in keys}
        self._signing_key = hashlib.sha256(b"client secrets\0" + "\0".join(sorted(keys)).encode()).digest()
        if not keys:
            self._signing_key = signing_key or secrets.token_bytes(32)
        self._origins, self._clock = set(origins), clock
        self._hosts = {host.lower() for host in hosts}

    def authenticate(self, authorization: str | None, subprotocols: Sequence[str] = ()) -> Principal | None:
        """Identify the client by its Authorization header or WebSocket subprotocols.

        Returns:
            None for a wrong, missing or expired key.
        """
        key = next((p.removeprefix(BROWSER_KEY) for p in subprotocols if p.startswith(BROWSER_KEY)), None)
        scheme, _, bearer = (authorization or "").partition(" ")
        if scheme.lower() == "bearer" and bearer:
            key = bearer.strip()
        if key is not None and key.startswith("ek_"):
            return self._open_client_secret(key)
        if not self._key_ids:
            return Principal("anonymous")
        matches = [
            key_id
            for known, key_id in self._key_ids.items()
            if hmac.compare_digest(known.encode(), (key or "").encode())
        ]
        return Principal(matches[0]) if matches else None

    def create_client_secret(
        self, principal: Principal, session: Mapping[str, Any], ttl_seconds: int
    ) -> tuple[str, int]:
        """Create a client secret.

        Args:
            principal: The client.
            session: Settings of the sessions that are opened with it.
            ttl_seconds: How long it is valid.

        Returns:
            The secret and its expiry time in Unix seconds.

        Raises:
            ValueError: The settings are too long.
        """
        expires_at = int(self._clock()) + ttl_seconds
        payload = json.dumps(
            {"expires_at": expires_at, "key_id": principal.key_id, "session": dict(session)}, separators=(",", ":")
        )
        if len(payload) > MAX_SECRET:
            raise ValueError(f"the session's settings exceed {MAX_SECRET} bytes")
        body = _to_base64(payload.encode())
        return f"ek_{body}.{self._sign(body)}", expires_at

    def _open_client_secret(self, secret: str) -> Principal | None:
        body, _, signature = secret.removeprefix("ek_").partition(".")
        if not hmac.compare_digest(self._sign(body).encode(), signature.encode()):
            return None
        payload = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        if payload["expires_at"] < self._clock():
            return None
        return Principal(payload["key_id"], payload["session"], by_secret=True)

    def _sign(self, body: str) -> str:
        return _to_base64(hmac.digest(self._signing_key, body.encode(), "sha256"))

    def allows_origin(self, origin: str | None, host: str | None) -> bool:
        """Whether a page from `origin` may connect. Programs send no origin; the server's own page may always."""
        if origin is None or "*" in self._origins or origin in self._origins:
            return True
        return host is not None and _netloc(origin) == host.lower()

    def allows_host(self, host: str | None) -> bool:
        """Whether a client may address the server by this name, as in the header `Host`.

        Without API keys, another name than the server's own is refused: a page of the web whose name was made to point
        to this machine (DNS rebinding) would count as the server's own page.
        """
        if self._key_ids or host is None or "*" in self._hosts:
            return True
        name = urlsplit(f"//{host}").hostname if _netloc(f"//{host}") else None
        return name is not None and (name in self._hosts or name == "localhost" or _is_address(name))


def _netloc(url: str) -> str:
    """Return host and port of a URL; "" for one that is invalid."""
    try:
        parts = urlsplit(url)
        return parts.netloc.lower() if parts.hostname and parts.port != 0 else ""
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _to_base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
