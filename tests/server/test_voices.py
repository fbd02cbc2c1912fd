"""Voices on the wire: which are listed, accepted, replaced by the default, refused."""

import json
import urllib.request

import pytest

from speechgpt2.duplex.protocol import EngineVoice
from speechgpt2.errors import UserError
from tests import needs
from tests.server.conftest import open_client, serving
from tests.server.fake import FakeEngine

openai = needs.module("openai", "dev")
HELLO = [{"role": "user", "content": "hello"}]
VOICES = (EngineVoice("anna", "Hello!"), EngineVoice("ben", "Good day!", default=True))
KNOWN = "the model's voices are anna, ben"


@pytest.fixture(scope="module")
def served():
    with serving(FakeEngine(4, VOICES)) as running:
        yield running


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(api_key="none", base_url=f"{served.http}/v1", max_retries=0) as client:
        yield client


def get(served, path):
    with urllib.request.urlopen(served.http + path) as response:
        return json.load(response)


def last_voice(served):
    return served.engine.sessions[-1].settings.voice


def test_voices_are_listed(served):
    anna = {"id": "anna", "object": "voice", "text": "Hello!", "default": False}
    ben = {"id": "ben", "object": "voice", "text": "Good day!", "default": True}
    assert get(served, "/v1/voices") == {"object": "list", "data": [anna, ben]}
    assert get(served, "/page-config")["voices"] == ["ben", "anna"]


def test_client_lists_voices(served):
    from speechgpt2.client import list_voices

    assert [voice["id"] for voice in list_voices(served.ws)] == ["anna", "ben"]
    with pytest.raises(UserError, match="no server at"):
        list_voices("ws://127.0.0.1:9")


def test_model_without_voices():
    with serving() as plain:
        assert get(plain, "/v1/voices")["data"] == [] and get(plain, "/page-config")["voices"] == []
        with open_client(plain) as session:
            assert session.seen[0]["session"]["audio"]["output"]["voice"] == "default"
            session.send("session.update", session={"type": "realtime", "audio": {"output": {"voice": "anna"}}})
            error = session.until("error")[-1]["error"]
            assert error["param"] == "session.audio.output.voice" and "one voice, 'default'" in error["message"]


# Realtime


def voice_of(session):
    return session["audio"]["output"]["voice"]


def test_session_chooses_a_voice(served):
    with open_client(served) as session:
        assert voice_of(session.seen[0]["session"]) == "ben" and last_voice(served) == "ben"
        assert voice_of(session.update(audio={"output": {"voice": "anna"}})) == "anna"
        assert last_voice(served) == "anna"
        assert voice_of(session.update(instructions="Be brief.")) == "anna"
        assert voice_of(session.update(audio={"output": {"voice": {"id": "ben"}}})) == "ben"
        session.update(audio={"output": {"voice": "anna"}})
        assert voice_of(session.update(audio={"output": {"voice": "default"}})) == "ben"


def test_unknown_voice_is_an_error_and_changes_nothing(served):
    with open_client(served) as session:
        session.update(audio={"output": {"voice": "anna"}})
        session.send("session.update", session={"type": "realtime", "audio": {"output": {"voice": "carl"}}})
        error = session.until("error")[-1]["error"]
        assert (error["code"], error["param"]) == ("invalid_value", "session.audio.output.voice")
        assert 'no voice "carl"' in error["message"] and KNOWN in error["message"]
        assert voice_of(session.update()) == "anna" and last_voice(served) == "anna"


def test_voice_of_openai_means_the_default(served):
    with open_client(served) as session:
        session.send("session.update", session={"type": "realtime", "audio": {"output": {"voice": "marin"}}})
        event = session.until("session.updated")[-1]
        assert voice_of(event["session"]) == "ben"
        assert event["warnings"] == [f"session.audio.output.voice has no effect: {KNOWN}"]


def test_voice_is_fixed_once_the_model_has_spoken(served):
    with open_client(served) as session:
        session.update(output_modalities=["text"], max_output_tokens=2)
        session.write("hello")
        session.until("response.done")
        session.update(audio={"output": {"voice": "anna"}}, output_modalities=["audio"])  # nothing was spoken yet
        session.write("hello")
        session.until("response.done")
        session.send("session.update", session={"type": "realtime", "audio": {"output": {"voice": "ben"}}})
        error = session.until("error")[-1]["error"]
        assert (error["code"], error["param"]) == ("cannot_update_voice", "session.audio.output.voice")
        assert voice_of(session.update(audio={"output": {"voice": "anna"}})) == "anna"


def test_response_has_its_session_s_voice(served):
    with open_client(served) as session:
        session.update(audio={"output": {"voice": "anna"}}, max_output_tokens=2)
        session.send("response.create", response={"audio": {"output": {"voice": "ben"}}})
        error = session.until("error")[-1]["error"]
        assert (error["code"], error["param"]) == ("unsupported_value", "response.audio.output.voice")
        session.send("response.create", response={"audio": {"output": {"voice": "carl"}}})
        assert KNOWN in session.until("error")[-1]["error"]["message"]
        session.send("response.create", response={"audio": {"output": {"voice": "anna"}}})
        response = session.until("response.done")[-1]["response"]
        assert response["audio"]["output"]["voice"] == "anna"


def test_client_secret_holds_a_voice(served):
    def create(voice):
        body = json.dumps({"session": {"type": "realtime", "audio": {"output": {"voice": voice}}}}).encode()
        with urllib.request.urlopen(served.http + "/v1/realtime/client_secrets", body) as response:
            return json.load(response), response.headers.get("Warning", "")

    secret, _ = create("anna")
    assert voice_of(secret["session"]) == "anna"
    headers = {"Authorization": f"Bearer {secret['value']}"}
    with open_client(served, additional_headers=headers) as session:
        assert voice_of(session.seen[0]["session"]) == "anna" and last_voice(served) == "anna"
    assert KNOWN in create("alloy")[1]
    with pytest.raises(urllib.error.HTTPError) as caught:
        create("carl")
    assert json.load(caught.value)["error"]["param"] == "session.audio.output.voice"


# REST


def test_speech_has_the_voice(client, served):
    client.audio.speech.create(model="mini", voice="anna", input="one", response_format="pcm")
    assert last_voice(served) == "anna"
    answer = client.audio.speech.with_raw_response.create(
        model="mini", voice="alloy", input="one", response_format="pcm"
    )
    assert last_voice(served) == "ben" and f"voice has no effect: {KNOWN}" in answer.headers["warning"]
    with pytest.raises(openai.BadRequestError, match=KNOWN) as error:
        client.audio.speech.create(model="mini", voice="carl", input="one")
    assert error.value.param == "voice"


def test_chat_completion_has_the_voice(client, served):
    def ask(**audio):
        return client.chat.completions.with_raw_response.create(
            model="mini", messages=HELLO, modalities=["text", "audio"], audio={"format": "wav", **audio}, max_tokens=2
        )

    assert "warning" not in ask(voice="anna").headers and last_voice(served) == "anna"
    assert "audio.voice has no effect" in ask(voice="ash").headers["warning"] and last_voice(served) == "ben"
    with pytest.raises(openai.BadRequestError, match=KNOWN) as error:
        ask(voice="carl")
    assert error.value.param == "audio.voice"


def test_requests_without_a_voice_have_the_default(client, served):
    client.chat.completions.create(model="mini", messages=HELLO, max_tokens=2)
    assert last_voice(served) == "ben"
