"""An application without a model, as replicas load it: `make_app` is found by its name in their processes."""

import os

from fastapi.responses import PlainTextResponse

from speechgpt2.server.app import App
from tests.server.fake import FakeDialogue, FakeEngine


def make_app(config):
    app = App(config, FakeEngine(config.slots), FakeDialogue)

    async def who():
        return PlainTextResponse(f"{os.getpid()} {app.gateway.admission.active} {config.model}")

    async def fail():
        app.engine.alive = False
        return PlainTextResponse(str(os.getpid()))

    app.asgi.add_api_route("/who", who)
    app.asgi.add_api_route("/fail", fail)
    return app
