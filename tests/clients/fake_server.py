"""A server without a model, for trying clients: `python -m tests.clients.fake_server 8000`."""

import sys

from speechgpt2.server import launch
from speechgpt2.server.app import App
from speechgpt2.server.config import ServerConfig
from tests.server.fake import FakeDialogue, FakeEngine

if __name__ == "__main__":
    launch.run(App(ServerConfig(port=int(sys.argv[1])), FakeEngine(), FakeDialogue))
