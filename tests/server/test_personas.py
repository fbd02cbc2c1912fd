"""Personas over the API: listed, chosen by a session or the server, and greeting first."""

import json
from urllib.request import urlopen

import pytest

from speechgpt2.duplex.protocol import EngineVoice
from speechgpt2.persona import load_persona
from tests.server.conftest import open_client, serving
from tests.server.fake import FakeEngine

PIRATE = load_persona("pirate")


def get(served, path):
    with urlopen(f"{served.http}{path}", timeout=10) as response:
        return json.load(response)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    file = tmp_path_factory.mktemp("personas") / "mine.yaml"
    file.write_text(
        "{name: Ada, language: en, instructions: Count., voice: deep, greeting: One two.}", encoding="utf-8"
    )
    voices = (EngineVoice("bright", "Hello.", True), EngineVoice("deep", "Hello.", False))
    with serving(FakeEngine(4, voices), persona=str(file)) as running:
        running.persona = str(file)
        yield running


def settings(served):
    return served.engine.sessions[-1].settings


def test_personas_are_listed(served):
    listed = get(served, "/v1/personas")["data"]
    assert listed[0]["id"] == served.persona and listed[0]["default"] and listed[0]["voice"] == "deep"
    pirate = next(entry for entry in listed if entry["id"] == "pirate")
    assert pirate["greeting"] == PIRATE.greeting and pirate["language"] == "en"
    assert get(served, "/page-config")["personas"][0] == served.persona


def test_persona_of_the_server_holds_for_all_sessions(served):
    with open_client(served) as client:
        assert settings(served).instructions == "Count." and settings(served).voice == "deep"
        client.send("response.create")
        [*_, done] = client.until("response.done")
        assert done["response"]["output"][0]["content"][0]["transcript"] == "One two."
        client.write("hello")
        [*_, done] = client.until("response.done")
        assert done["response"]["output"][0]["content"][0]["transcript"].startswith("you said")


def test_session_chooses_a_persona(served):
    with open_client(served) as client:
        session = client.update(persona="pirate", instructions="Be brief.")
        assert session["persona"] == "pirate" and session["instructions"] == f"{PIRATE.prompt}\nBe brief."
        assert settings(served).instructions == session["instructions"]
        client.send("response.create")
        [*_, done] = client.until("response.done")
        assert done["response"]["output"][0]["content"][0]["transcript"] == PIRATE.greeting


def test_unknown_persona_is_an_error_that_lists_the_others(served):
    with open_client(served) as client:
        client.send("session.update", session={"type": "realtime", "persona": "nobody"})
        error = client.until("error")[-1]["error"]
        assert error["param"] == "session.persona" and "pirate" in error["message"]
