"""A wire protocol of plain text, as one module would add it: a serializer, a session, a route."""

import asyncio

import pytest
from websockets.asyncio.client import connect

from speechgpt2.server import app
from speechgpt2.server.channel import Channel, WireSession
from speechgpt2.server.protocols import PROTOCOLS
from speechgpt2.server.schema import ProtocolError
from speechgpt2.server.websocket import WebSocketProtocol
from speechgpt2.types import ReplyDone, TextDelta, Turn
from tests.server.conftest import serving


class PlainSerializer:
    def deserialize(self, data):
        if not isinstance(data, str) or not data.strip():
            raise ProtocolError("empty message")
        return data

    def serialize(self, event):
        return event or None


class PlainSession(WireSession[str]):
    def __init__(self, dialogue, channel):
        self.id, self.dialogue, self.channel = "plain", dialogue, channel
        self.reply = ""

    async def handle_message(self, message):
        self.dialogue.add_turn(Turn.user(message))
        self.dialogue.respond()

    def handle_event(self, event):
        match event:
            case TextDelta(text):
                self.reply += text
            case ReplyDone():
                self.channel.send(self.reply)
                self.reply = ""

    def handle_error(self, error, message):
        self.channel.send(f"error: {error}")

    def drain(self):
        self.channel.close(1001, "the server is shutting down")

    def summary(self):
        return {"session": self.id}


class PlainProtocol(WebSocketProtocol):
    path = "/plain"

    def make_session(self, dialogue, config):
        return PlainSession(dialogue, Channel(PlainSerializer(), self.gateway.config.limits))


@pytest.fixture
def served(monkeypatch):
    monkeypatch.setattr(app, "PROTOCOLS", (*PROTOCOLS, PlainProtocol))
    with serving(slots=1) as running:
        yield running


def test_new_protocol_needs_one_registration(served):
    async def scenario():
        async with connect(f"ws://127.0.0.1:{served.port}/plain", proxy=None) as socket:
            await socket.send(" ")
            assert await socket.recv() == "error: empty message"
            await socket.send("hello")
            assert (await socket.recv()).startswith("you said hello and I")
            assert served.app.gateway.admission.active == 1
            served.server.servers[0].get_loop().call_soon_threadsafe(lambda: asyncio.ensure_future(served.app.drain()))
            await asyncio.wait_for(socket.wait_closed(), 10)
            assert socket.close_code == 1001

    asyncio.run(asyncio.wait_for(scenario(), 60))
    served.wait(lambda: not served.engine.open_sessions)
