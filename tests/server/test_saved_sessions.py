"""Saved sessions over a socket: they go on after a lost connection and after a restart, and belong to one API key."""

import asyncio
import json
import urllib.error
import urllib.request
from contextlib import contextmanager
from functools import partial

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from speechgpt2.duplex.dialogue import Dialogue
from speechgpt2.engine.config import EngineConfig
from speechgpt2.engine.engine import Engine
from speechgpt2.engine.replay import replay
from speechgpt2.server.config import SessionsConfig
from speechgpt2.sessions.store import SessionFolder
from tests import needs
from tests.duplex.session import LevelVad
from tests.engine.tiny import models, tiny_engine, tiny_lm
from tests.server.conftest import open_client, serving, voice
from tests.server.test_clients import until
from tests.server.test_realtime import MANUAL

openai = needs.module("openai", "dev")
KEYS = ("key-of-anna", "key-of-ben-")


@contextmanager
def saving(folder, lm=None, **settings):
    """Serve a real engine of random weights."""
    codec, babbling = models()
    engine = Engine(codec, lm or babbling, EngineConfig(slots=2, context=512))
    engine.start()
    sessions = SessionsConfig(str(folder))
    with serving(engine, partial(Dialogue, make_vad=LevelVad), slots=2, sessions=sessions, **settings) as served:
        yield served


def ask(client, pcm):
    client.append(pcm)
    client.send("input_audio_buffer.commit")
    client.send("response.create")
    return client.until("response.done", 60)[-1]["response"]


def refused(served, query, **options):
    """Return the error with which a connection is refused."""
    with pytest.raises(InvalidStatus) as error, open_client(served, query, **options):
        pass
    return error.value.response.status_code, json.loads(error.value.response.body)["error"]


def call(served, path, key=None, method="GET"):
    request = urllib.request.Request(served.http + path, method=method)
    request.add_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request) as response:
            return json.loads(response.read())
    except urllib.error.HTTPError as error:
        return json.loads(error.read())["error"]["code"]


def as_key(key):
    return {"additional_headers": {"Authorization": f"Bearer {key}"}}


def test_session_goes_on_after_a_restart(tmp_path):
    with saving(tmp_path) as served:
        with open_client(served) as client:
            created = client.seen[0]["session"]
            client.update(**MANUAL, instructions="Hello there", max_output_tokens=30)
            ask(client, voice(0.5))
            client.write("Hello")
            client.until("response.done", 60)
        id, items = created["id"], [e["item"] for e in client.seen if e["type"] == "conversation.item.done"]
    assert len(items) == 4
    before = SessionFolder(tmp_path).load(id)
    assert len(before.remembered) == 4 and before.header.owner == "anonymous"
    with saving(tmp_path) as served, open_client(served, f"?session_id={id}") as client:
        session = client.seen[0]["session"]
        assert session["id"] == id and session["instructions"] == "Hello there"
        assert session["seed"] == created["seed"] and session["max_output_tokens"] == 30
        restored = [client.next() for _ in range(8)]
        assert [e["item"] for e in restored if e["type"] == "conversation.item.done"] == items
        served.wait(lambda: served.engine.core.sessions and next(iter(served.engine.core.sessions.values())).slot)
        context = next(iter(served.engine.core.sessions.values())).slot.history.context
        assert context.patch_block(0, context.length).same(before.context)
        ask(client, voice(0.4))
        client.send("conversation.item.delete", item_id=items[0]["id"])
        client.until("conversation.item.deleted")
    saved = SessionFolder(tmp_path).load(id)
    assert len(saved.items) == 5 and len(saved.turns) == 5 and 1 not in saved.turns
    found = list(replay(tiny_engine(context=512, slots=2), tmp_path / f"{id}.jsonl"))
    assert len(found) == 3 and "different" not in [reply.status for reply in found]


def test_new_connection_takes_the_session_over(tmp_path):
    with saving(tmp_path) as served, open_client(served) as first:
        first.update(**MANUAL, max_output_tokens=10)
        ask(first, voice(0.4))
        with open_client(served, f"?session_id={first.seen[0]['session']['id']}") as second:
            with pytest.raises(ConnectionClosed) as closed:
                first.until("session.updated")
            assert closed.value.rcvd.code == 1008 and "another connection" in closed.value.rcvd.reason
            ask(second, voice(0.4))


def test_sessions_belong_to_their_key(tmp_path):
    anna, ben = KEYS
    with saving(tmp_path, api_keys=KEYS) as served:
        with open_client(served, **as_key(anna)) as client:
            client.update(**MANUAL, max_output_tokens=10)
            id = client.seen[0]["session"]["id"]
            ask(client, voice(0.4))
            assert call(served, f"/v1/sessions/{id}", anna, "DELETE") == "session_in_use"
        for path, key in ((id, ben), ("sess_unknown", anna), ("..%2F" + id, anna)):
            status, error = refused(served, f"?session_id={path}", **as_key(key))
            assert (status, error["code"], error["param"]) == (404, "session_not_found", "session_id")
        served.wait(lambda: not served.app.gateway.admission.active)
        assert call(served, "/v1/sessions", ben)["data"] == []
        assert call(served, f"/v1/sessions/{id}", ben) == "session_not_found"
        assert call(served, f"/v1/sessions/{id}", ben, "DELETE") == "session_not_found"
        assert [entry["id"] for entry in call(served, "/v1/sessions", anna)["data"]] == [id]
        found = call(served, f"/v1/sessions/{id}", anna)
        assert [item["role"] for item in found["items"]] == ["user", "assistant"] and found["turns"] == 2
        served.wait(lambda: served.app.gateway.saved.find_open(id, "") is None)
        assert call(served, f"/v1/sessions/{id}", anna, "DELETE")["deleted"] is True
        assert refused(served, f"?session_id={id}", **as_key(anna))[0] == 404
    assert anna not in "".join(path.read_text() for path in tmp_path.iterdir())


def test_unusable_sessions_are_refused(tmp_path):
    with saving(tmp_path) as served, open_client(served) as client:
        client.update(**MANUAL, max_output_tokens=10)
        id = client.seen[0]["session"]["id"]
        ask(client, voice(0.4))
    path = tmp_path / f"{id}.jsonl"
    whole = path.read_bytes()
    with saving(tmp_path, tiny_lm(chain_of_modality=True)) as served:
        status, error = refused(served, f"?session_id={id}")
        assert (status, error["code"]) == (400, "session_unusable") and "a different language model" in error["message"]
        path.write_bytes(whole.replace(b'"role":"user"', b'"role":"tool"', 1))
        status, error = refused(served, f"?session_id={id}")
        assert (status, error["code"]) == (400, "session_unusable") and "damaged" in error["message"]
        path.write_bytes(whole[:100])
        assert "cut off within its first line" in refused(served, f"?session_id={id}")[1]["message"]
        path.write_bytes(whole)
        assert not served.app.gateway.admission.active
    with serving() as served:
        status, error = refused(served, f"?session_id={id}")
        assert (status, error["code"]) == (400, "sessions_not_saved")
        assert call(served, "/v1/sessions")["data"] == []


def test_sessions_without_turns_leave_nothing(tmp_path):
    with saving(tmp_path) as served:
        with open_client(served) as client:
            client.update(instructions="Hello")
        with open_client(served, "?intent=transcription"):
            pass
    assert not list(tmp_path.iterdir())


def test_openai_python_goes_on(tmp_path):
    async def items(connection, count):
        return [(await connection.recv()).item.id for _ in range(count)]

    async def scenario(served):
        client = openai.AsyncOpenAI(api_key="none", base_url=f"{served.http}/v1", max_retries=0)
        async with client, client.realtime.connect(model="mini") as connection:
            created = (await until(connection, "session.created"))[-1].session
            await connection.session.update(session={"type": "realtime", "max_output_tokens": 10})
            content = [{"type": "input_text", "text": "Hello"}]
            await connection.conversation.item.create(item={"type": "message", "role": "user", "content": content})
            await connection.response.create()
            await until(connection, "response.done")
        query = {"session_id": created.id}
        async with client, client.realtime.connect(model="mini", extra_query=query) as connection:
            session = (await until(connection, "session.created"))[-1].session
            assert session.id == created.id and session.max_output_tokens == 10
            assert len(set(await items(connection, 4))) == 2  # added and done of the question and the answer
            await connection.response.create()
            await until(connection, "response.done")

    with saving(tmp_path) as served:
        asyncio.run(asyncio.wait_for(scenario(served), 300))


def test_call_goes_on_over_webrtc(tmp_path, monkeypatch):
    needs.module("aiortc", "webrtc")
    from tests.server.test_webrtc import Client, call, calling

    for wait in (Client.next, Client.until):
        monkeypatch.setattr(wait, "__defaults__", (100.0,))

    async def scenario(served):
        async with calling(served) as client:
            await client.update(**MANUAL, max_output_tokens=10)
            client.write("Hello")
            await client.until("response.done", 60)
            id = client.events[0][1]["session"]["id"]
            status, _, answer = await call(served, "v=0", "?session_id=sess_unknown")
            assert status == 404 and json.loads(answer)["error"]["code"] == "session_not_found"
        async with calling(served, f"?session_id={id}") as client:
            await client.until("conversation.item.done")
            assert client.events[0][1]["session"]["id"] == id

    with saving(tmp_path) as served:
        asyncio.run(asyncio.wait_for(scenario(served), 300))
