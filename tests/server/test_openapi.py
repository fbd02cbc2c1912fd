"""The description of the REST routes is complete and true."""

import json
import re
import urllib.request

import pytest

from speechgpt2.server.openapi import JSON, REQUESTS, RESPONSES, describe
from tests.server.conftest import voice
from tests.server.test_rest import form, wav

BODIES = {
    "/v1/chat/completions": {"model": "mini", "messages": [{"role": "user", "content": "hello"}]},
    "/v1/responses": {"model": "mini", "input": "hello"},
    "/v1/realtime/client_secrets": {},
}


def answer(served, path, data=None, kind="application/json"):
    """Return status, media type and body of a response."""
    request = urllib.request.Request(served.http + path, data, {"Content-Type": kind} if data else {})
    with urllib.request.urlopen(request) as response:
        return response.status, response.headers["content-type"].split(";")[0], response.read()


@pytest.fixture(scope="module")
def schema(served):
    return json.loads(answer(served, "/openapi.json")[2])


def test_every_route_is_described(served, schema):
    paths = schema["paths"]
    assert paths.keys() == RESPONSES.keys()
    assert {path for path, methods in paths.items() if "post" in methods} == REQUESTS.keys()
    assert all("description" in operation for methods in paths.values() for operation in methods.values())
    assert paths == describe(served.app.asgi)["paths"]


def test_references_lead_somewhere(schema):
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(schema)))
    assert {"ChatRequest", "SpeechRequest", "TranscriptionRequest", "Error"} <= names
    assert names <= schema["components"]["schemas"].keys()


def test_fields_are_those_of_the_requests(schema):
    schemas = schema["components"]["schemas"]
    assert schemas["TranscriptionRequest"]["required"] == ["file", "model"]
    assert schemas["SpeechRequest"]["properties"]["input"]["maxLength"] == 4096
    calls = schemas["ChatRequest"]["properties"]["parallel_tool_calls"]
    assert calls["description"].startswith("Has no effect: ")


WITHOUT_ID = [path for path, (_, kinds) in RESPONSES.items() if JSON in kinds and "{id}" not in path]


@pytest.mark.parametrize("path", WITHOUT_ID)
def test_responses_are_as_described(served, path):
    kind, data = "application/json", json.dumps(BODIES[path]).encode() if path in BODIES else None
    if path == "/v1/audio/transcriptions":
        kind, data = "multipart/form-data; boundary=x", form(wav(voice(0.3)))
    status, found, body = answer(served, path.replace("{name}", "mini"), data, kind)
    wanted, kinds = RESPONSES[path]
    assert (status, found) == (wanted, JSON)
    assert set(kinds[JSON].split()) <= json.loads(body).keys()


def test_page_of_the_description_loads_nothing_from_elsewhere(served, schema):
    page = answer(served, "/docs")[2].decode()
    assert all(f"<code>POST {path}</code>" in page for path in REQUESTS)
    assert "timestamp_granularities" in page and "<script" not in page and "//" not in re.sub(r"<!--.*?-->", "", page)
    assert b"color-scheme" in answer(served, "/docs.css")[2]
