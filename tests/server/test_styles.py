"""Speed and style over the API: obeyed everywhere, or refused by their names."""

import pytest

from speechgpt2.errors import UserError
from speechgpt2.server.config import ServerConfig
from speechgpt2.style import NORMAL, named_style, parse_style
from tests import needs
from tests.server.conftest import open_client, serving

openai = needs.module("openai", "dev")


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(api_key="none", base_url=f"{served.http}/v1", max_retries=0) as client:
        yield client


def settings(served):
    return served.engine.sessions[-1].settings


def output(**fields):
    return {"audio": {"output": fields}}


def test_session_has_a_speed_and_a_style(served):
    with open_client(served) as client:
        assert (settings(served).speed, settings(served).style) == (1.0, NORMAL)
        session = client.update(**output(speed=1.25, style="slower, whisper"))
        assert session["audio"]["output"]["style"] == "slower, whisper"
        assert "warnings" not in session
        assert (settings(served).speed, settings(served).style) == (1.25, parse_style("slower, whisper"))
        client.update(**output(style=None))
        assert (settings(served).speed, settings(served).style) == (1.25, NORMAL)


@pytest.mark.parametrize(
    ("fields", "param"), [({"speed": 1.6}, "speed"), ({"speed": 0.2}, "speed"), ({"style": "loudly"}, "style")]
)
def test_wrong_values_are_refused_by_name(served, fields, param):
    with open_client(served) as client:
        client.send("session.update", session={"type": "realtime", **output(**fields)})
        error = client.until("error")[-1]["error"]
        assert error["param"] == f"session.audio.output.{param}"
        assert param != "style" or "whisper" in error["message"]
        client.send("response.create", response=output(**fields))
        assert client.until("error")[-1]["error"]["param"] == f"response.audio.output.{param}"


def test_response_may_have_a_speed_and_a_style_of_its_own(served):
    with open_client(served) as client:
        client.update(**output(speed=1.25, style="whisper"))
        for fields, speed, style in (
            ({"style": "高兴"}, 1.25, named_style("happy")),
            ({"speed": 0.5}, 0.5, None),
            ({}, 1.25, None),
        ):
            client.send("response.create", response=output(**fields))
            client.until("response.done")
            options = served.engine.sessions[-1].options
            assert (options.speed, options.style) == (speed, style)


def test_persona_speaks_in_its_style_unless_the_client_names_one(served):
    with open_client(served) as client:
        assert client.update(persona="storyteller")["audio"]["output"]["style"] == "slower"
        assert settings(served).style == named_style("slower")
        client.update(persona="newsreader", **output(style="happy"))
        assert settings(served).style == named_style("happy")


def test_speech_has_a_speed_and_a_style(client, served):
    speech = client.audio.speech.with_raw_response.create(
        model="mini", voice="default", input="one", speed=4.0, instructions="Whisper, and speak slowly."
    )
    assert "warning" not in speech.headers
    assert (settings(served).speed, settings(served).style) == (4.0, parse_style("whisper, slower"))
    body = {"style": "sad"}
    speech = client.audio.speech.with_raw_response.create(
        model="mini", voice="default", input="one", instructions="Whisper.", extra_body=body
    )
    assert settings(served).style == named_style("sad") and settings(served).speed == 1.0
    assert "instructions has no effect" in speech.headers["warning"]
    for fields in ({"speed": 4.5}, {"speed": 0.2}):
        with pytest.raises(openai.BadRequestError) as error:
            client.audio.speech.create(model="mini", voice="default", input="one", **fields)
        assert error.value.param == "speed"


def test_spoken_chat_completion_has_a_speed_and_a_style(client, served):
    audio = {"voice": "default", "format": "wav", "speed": 2.0, "style": "louder"}
    messages = [{"role": "user", "content": "hello"}]
    client.chat.completions.create(model="mini", messages=messages, modalities=["text", "audio"], audio=audio)
    assert (settings(served).speed, settings(served).style) == (2.0, named_style("louder"))


def test_server_has_a_default_speed_and_style():
    with serving(speed=0.8, style="calm", persona="newsreader") as served, open_client(served):
        assert (settings(served).speed, settings(served).style) == (0.8, named_style("calm"))


@pytest.mark.parametrize("fields", [{"speed": 2.0}, {"style": "loudly"}])
def test_wrong_defaults_are_refused(fields):
    with pytest.raises(UserError):
        ServerConfig(**fields)
