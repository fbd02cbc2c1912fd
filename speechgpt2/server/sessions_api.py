"""The saved sessions of a client: list, read, delete. An extension of OpenAI's API."""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from speechgpt2.server.gateway import Gateway, WireProtocol
from speechgpt2.server.items import item_from_saved
from speechgpt2.sessions.entries import SavedSession

MAX_LISTED = 100
MAX_TITLE = 80  # characters


class SessionsApi(WireProtocol):
    """The routes of saved sessions. A client sees those of its own API key."""

    def __init__(self, gateway: Gateway):
        super().__init__(gateway)
        self.router.add_api_route("/v1/sessions", self.list_sessions)
        self.router.add_api_route("/v1/sessions/{id}", self.get_session)
        self.router.add_api_route("/v1/sessions/{id}", self.delete_session, methods=["DELETE"])

    async def list_sessions(self, request: Request) -> Response:
        """`GET /v1/sessions`: the latest 100 saved sessions of this API key, the latest first."""
        owner = self.gateway.authenticate(request).key_id

        def read() -> list[dict[str, Any]]:
            return [summary(saved) for saved in islice(self.gateway.saved.list(owner), MAX_LISTED)]

        return JSONResponse({"object": "list", "data": await asyncio.to_thread(read)})

    async def get_session(self, request: Request, id: str) -> Response:
        """`GET /v1/sessions/{id}`: a saved session with its items, without audio."""
        owner = self.gateway.authenticate(request).key_id
        saved = await asyncio.to_thread(self.gateway.saved.load, id, owner)
        items = [entry.item for entry in saved.items.values()]
        return JSONResponse({**summary(saved), "session": saved.wire_settings, "items": items})

    async def delete_session(self, request: Request, id: str) -> Response:
        """`DELETE /v1/sessions/{id}`: delete a saved session, which must not be open."""
        owner = self.gateway.authenticate(request).key_id
        await asyncio.to_thread(self.gateway.saved.delete, id, owner)
        return JSONResponse({"id": id, "object": "session.deleted", "deleted": True})


def summary(saved: SavedSession) -> dict[str, Any]:
    """Describe a saved session in a list."""
    header = saved.header
    times = {"created_at": int(header.created_at), "updated_at": int(saved.updated_at)}
    counts = {"turns": len(saved.turns), "title": title(saved)}
    return {"id": header.id, "object": "session", "model": header.model, **times, **counts}


def title(saved: SavedSession) -> str | None:
    """Return the beginning of the first known words of the user; None if none are known."""
    items = (item_from_saved(entry.item, entry.turn) for entry in saved.items.values())
    texts = (" ".join(item.text.split()) for item in items if item.type == "message" and item.role == "user")
    return next((text[:MAX_TITLE] for text in texts if text), None)
