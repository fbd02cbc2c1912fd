"""A proxy that knows no answer before the upgrade: who is refused gets a close code after it."""

import asyncio

from speechgpt2.server.app import App
from speechgpt2.server.config import ServerConfig
from tests.server.fake import FakeDialogue, FakeEngine


def knock(app):
    """What the application sends to a websocket without the extension for answers before the upgrade."""
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


def test_no_room_and_no_key():
    app = App(ServerConfig(slots=1), FakeEngine(1), FakeDialogue)
    with app.admission.place("anyone"):
        assert knock(app) == [("websocket.accept", None), ("websocket.close", 1013)]
    app.admission.draining = True
    assert knock(app)[-1] == ("websocket.close", 1013)
    app = App(ServerConfig(api_keys=("a-good-key",)), FakeEngine(1), FakeDialogue)
    assert knock(app)[-1] == ("websocket.close", 1008)
