"""Rejections behind a proxy that cannot answer before the upgrade: a close code after it."""

import asyncio

from speechgpt2.server.app import App
from speechgpt2.server.config import ServerConfig
from tests.server.fake import FakeDialogue, FakeEngine


def connect(app):
    """Return what the application sends to a WebSocket without the ASGI extension for HTTP responses."""
    sent = []
    scope = {
        "type": "websocket",
        "path": "/v1/realtime",
        "query_string": b"",
        "headers": [],
        "subprotocols": [],
        "extensions": {},
    }

    async def receive():
        return {"type": "websocket.connect"}

    async def send(message):
        sent.append(message)

    asyncio.run(app.asgi(scope, receive, send))
    return [(message["type"], message.get("code")) for message in sent]


def test_close_codes_of_rejected_sessions():
    app = App(ServerConfig(slots=1), FakeEngine(1), FakeDialogue)
    with app.gateway.admission.admit("anonymous"):
        assert connect(app) == [("websocket.accept", None), ("websocket.close", 1013)]
    app.gateway.admission.draining = True
    assert connect(app)[-1] == ("websocket.close", 1013)
    app = App(ServerConfig(api_keys=("a-good-key",)), FakeEngine(1), FakeDialogue)
    assert connect(app)[-1] == ("websocket.close", 1008)
