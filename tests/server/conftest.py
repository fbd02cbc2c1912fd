"""A server on a local port in a thread, a test client, and audio for it."""

import asyncio
import contextlib
import json
import threading
import time

import numpy as np
import pytest

from speechgpt2 import audio
from speechgpt2.types import SAMPLE_RATE
from tests import needs
from tests.server.events import checked

needs.module("fastapi", "server")
needs.module("websockets", "server")


class Served:
    """A running server: its `app`, its `engine`, and where it is."""

    def __init__(self, app, server, port):
        self.app, self.engine, self.server, self.port = app, app.engine, server, port
        self.http, self.ws = f"http://127.0.0.1:{port}", f"ws://127.0.0.1:{port}/v1/realtime"

    def wait(self, ready, seconds=5.0):
        end = time.monotonic() + seconds
        while not ready():
            assert time.monotonic() < end, "timeout"
            time.sleep(0.01)


@contextlib.contextmanager
def serving(engine=None, dialogue=None, tracing=None, **settings):
    """`with serving(slots=2) as served: …`"""
    from speechgpt2.server.app import App
    from speechgpt2.server.config import ServerConfig
    from speechgpt2.server.launch import DrainingServer, uvicorn_config
    from tests.server.fake import FakeDialogue, FakeEngine

    config = ServerConfig(**{"port": 0, "slots": 4, **settings})
    app = App(config, engine or FakeEngine(config.slots), dialogue or FakeDialogue, tracing=tracing)
    server = DrainingServer(uvicorn_config(app, config), app)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    try:
        end = time.monotonic() + 20
        while not server.started:
            assert thread.is_alive() and time.monotonic() < end
            time.sleep(0.01)
        yield Served(app, server, server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def served():
    with serving() as running:
        yield running


class RealtimeClient:
    """A client that validates every event with openai-python's types."""

    def __init__(self, socket):
        self.socket, self.seen = socket, []

    def send(self, type, **fields):
        self.socket.send(json.dumps({"type": type, **fields}))

    def next(self, seconds=10.0):
        event = checked(json.loads(self.socket.recv(timeout=seconds)))
        self.seen.append(event)
        return event

    def until(self, type, seconds=10.0):
        """Return the events up to the next of this type; fails at an error event."""
        events = [self.next(seconds)]
        while events[-1]["type"] != type:
            assert type == "error" or events[-1]["type"] != "error", events[-1]
            events.append(self.next(seconds))
        return events

    def update(self, **session):
        self.send("session.update", session={"type": "realtime", **session})
        return self.until("session.updated")[-1]["session"]

    def append(self, pcm):
        import base64

        self.send("input_audio_buffer.append", audio=base64.b64encode(audio.to_pcm16(pcm)).decode())

    def write(self, text):
        content = [{"type": "input_text", "text": text}]
        self.send("conversation.item.create", item={"type": "message", "role": "user", "content": content})
        self.send("response.create")


@contextlib.contextmanager
def open_client(served, query="", **options):
    from websockets.sync.client import connect

    with connect(served.ws + query, max_size=2**20, proxy=None, **options) as socket:
        client = RealtimeClient(socket)
        assert client.next()["type"] == "session.created"
        yield client


def voice(seconds):
    """A loud tone."""
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return (0.3 * np.sin(2 * np.pi * 200 * time)).astype(np.float32)


def silence(seconds):
    return np.zeros(int(seconds * SAMPLE_RATE), np.float32)
