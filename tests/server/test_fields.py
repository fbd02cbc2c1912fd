"""Nothing is silently ignored: every field is obeyed, refused by its name, or answered with a warning."""

import base64
import json
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from speechgpt2.server import chat_completions, messages, responses_api, session_config, speech_api, transcription_api
from speechgpt2.server.audio_formats import WireDecoder, WireEncoder
from speechgpt2.server.schema import NoEffect, WireModel, load_json
from speechgpt2.types import SAMPLE_RATE
from tests import needs
from tests.server.conftest import open_client, serving, silence, voice

openai = needs.module("openai", "dev")
HELLO = [{"role": "user", "content": "hello"}]
DOCUMENTED = (Path(__file__).parents[2] / "docs" / "server.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(api_key="none", base_url=f"{served.http}/v1", max_retries=0) as client:
        yield client


def models():
    for module in (chat_completions, messages, responses_api, session_config, speech_api, transcription_api):
        yield from (v for v in vars(module).values() if isinstance(v, type) and issubclass(v, WireModel))


def test_fields_without_effect_are_documented():
    names = {
        name
        for model in models()
        for name, field in model.model_fields.items()
        if any(isinstance(mark, NoEffect) for mark in field.metadata)
    }
    assert {"truncation", "noise_reduction", "prompt", "language"} <= names
    assert not {name for name in names if f"`{name}`" not in DOCUMENTED}


def test_beta_fields_are_documented():
    assert all(f"`{name}`" in DOCUMENTED for name in session_config.BETA_FIELDS)


# REST


def chat(client, **fields):
    fields = {"model": "mini", "messages": HELLO, "max_tokens": 12, **fields}
    return client.chat.completions.with_raw_response.create(**fields)


def test_sampling_fields_are_obeyed(client, served):
    chat(client, temperature=0.3, top_p=0.5, seed=7)
    settings = served.engine.sessions[-1].settings
    assert (settings.temperature, settings.top_p, settings.seed) == (0.3, 0.5, 7)
    seeds = set()
    for _ in range(3):
        assert "warning" not in chat(client).headers
        seeds.add(served.engine.sessions[-1].settings.seed)
    assert len(seeds) == 3
    client.audio.speech.create(model="mini", voice="default", input="one", extra_body={"seed": 9})
    assert served.engine.sessions[-1].settings.seed == 9


@pytest.mark.parametrize(
    ("stop", "text"), [("hello", "you said"), (["nothing", "I ans"], "you said hello and"), ("absent", None)]
)
def test_stop_ends_a_written_reply(client, stop, text):
    whole = "you said hello and I answer that in some words more than"
    answer = chat(client, stop=stop).parse().choices[0]
    assert (answer.message.content, answer.finish_reason) == (text or whole, "stop" if text else "length")
    chunks = list(client.chat.completions.create(model="mini", messages=HELLO, max_tokens=12, stop=stop, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks).strip() == (text or whole)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.schema"),
        ({"response_format": {"type": "json_object"}, "modalities": ["audio"]}, "response_format"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"presence_penalty": -1}, "presence_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"seed": -1}, "seed"),
        ({"n": 2}, "n"),
        ({"stop": "x", "modalities": ["audio"]}, "stop"),
    ],
)
def test_unsupported_fields_are_refused_by_name(client, fields, param):
    with pytest.raises(openai.BadRequestError) as error:
        client.post("/chat/completions", cast_to=object, body={"model": "mini", "messages": HELLO, **fields})
    assert error.value.param == param


def test_tools_that_the_model_cannot_call_are_answered_with_a_warning(client, served):
    weather = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    assert "warning" not in chat(client, tools=[weather]).headers
    served.engine.calls_tools = False
    wanted = "tools has no effect: the model was not trained to call tools"
    assert wanted in chat(client, tools=[weather]).headers["warning"]
    assert "warning" not in chat(client).headers
    with open_client(served) as realtime:
        realtime.update(tools=[{"type": "function", "name": "weather", "parameters": {"type": "object"}}])
        assert realtime.seen[-1]["warnings"] == [f"session.{wanted}"]


def test_values_that_ask_for_nothing_are_accepted(client):
    nothing = {"logprobs": False, "frequency_penalty": 0.0, "presence_penalty": 0, "logit_bias": {}}
    answer = chat(client, **nothing, response_format={"type": "text"})
    assert "warning" not in answer.headers


def test_fields_without_effect_are_answered_with_a_warning(client):
    warning = chat(client, model="gpt-9", parallel_tool_calls=False, extra_body={"magic": 1}).headers["warning"]
    assert "parallel_tool_calls has no effect" in warning and "magic is unknown" in warning
    assert "model has no effect: mini responds, not 'gpt-9'" in warning
    stream = chat(client, user="me", stream=True)
    assert "user is unknown to this server and has no effect" in stream.headers["warning"]
    stream.parse().close()
    speech = client.audio.speech.with_raw_response.create(
        model="mini", voice="alloy", input="one", instructions="With a French accent.", response_format="pcm"
    )
    for name in ("voice", "instructions"):
        assert f"{name} has no effect" in speech.headers["warning"]


def test_transcription_fields(client, served, wav_file):
    answer = client.audio.transcriptions.with_raw_response.create(
        model="mini", file=wav_file, language="de", prompt="names", temperature=0.4, timestamp_granularities=["segment"]
    )
    assert "language has no effect" in answer.headers["warning"] and "prompt has no effect" in answer.headers["warning"]
    assert served.engine.sessions[-1].settings.temperature == 0.4
    for fields, param in (
        ({"timestamp_granularities": ["word"]}, "timestamp_granularities"),
        ({"include": ["logprobs"]}, "include"),
        ({"response_format": "diarized_json"}, "response_format"),
        ({"temperature": 7}, "temperature"),
    ):
        with pytest.raises(openai.BadRequestError) as error:
            client.audio.transcriptions.create(model="mini", file=wav_file, **fields)
        assert error.value.param == param


@pytest.fixture
def wav_file():
    from tests.server.test_rest import wav

    return ("a.wav", wav(voice(0.5)))


def request(url, data=None, method=None):
    """Return status and JSON of a response."""
    body = None if data is None else data if isinstance(data, bytes) else json.dumps(data).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, method=method)) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_unknown_paths_have_an_error_in_openai_s_form(served):
    for path, method, status, code in (
        ("/v1/embeddings", "POST", 404, "unknown_url"),
        ("/nothing", "GET", 404, "unknown_url"),
        ("/v1/chat/completions", "GET", 405, "method_not_allowed"),
    ):
        found, body = request(served.http + path, method=method)
        assert found == status and body["error"]["code"] == code and path in body["error"]["message"]


SECRETS = "/v1/realtime/client_secrets"


@pytest.mark.parametrize("value", [7, "x", [], [1], True, {"seconds": "x"}, {"seconds": 1e999}, {"seconds": True}])
def test_wrong_types_in_client_secrets_are_refused_by_name(served, value):
    status, body = request(served.http + SECRETS, {"expires_after": value})
    assert status == 400 and body["error"]["param"].startswith("expires_after")
    if not isinstance(value, dict):
        status, body = request(served.http + SECRETS, {"session": value})
        assert status == 400 and body["error"]["param"] == "session"


@pytest.mark.parametrize("seed", range(60))
def test_wrong_types_are_no_failure_of_the_server(served, seed):
    """Random JSON in the place of any field is answered with 2xx or 4xx."""
    draw = np.random.default_rng(seed)
    values = [None, True, -1, 1e308, 2**70, "", "\ud800", [], {}, [[]], {"type": "text"}, [None], {"a": {"b": [1]}}]
    fields = ["model", "messages", "tools", "stop", "seed", "audio", "modalities", "tool_choice", "input", "session"]
    fields += ["response_format", "stream_options", "voice", "instructions", "text", "metadata", "expires_after"]
    path, base = [
        ("/v1/chat/completions", {"model": "mini", "messages": HELLO, "max_tokens": 2}),
        ("/v1/responses", {"model": "mini", "input": "hello", "max_output_tokens": 2}),
        ("/v1/audio/speech", {"model": "mini", "input": "one", "response_format": "pcm"}),
        (SECRETS, {}),
    ][seed % 4]
    body = dict(base)
    for name in draw.choice(fields, 3, replace=False):
        body[str(name)] = values[draw.integers(len(values))]
    data = json.dumps(body).encode()
    try:
        with urllib.request.urlopen(served.http + path, data) as response:
            assert response.status == 200
    except urllib.error.HTTPError as error:
        assert 400 <= error.code < 500, (error.code, body)
        assert json.loads(error.read())["error"]["message"]


def test_half_a_surrogate_pair(served, client):
    assert load_json('{"a": "x\\ud800y", "b": "\\ud83d\\ude00"}') == {"a": "x?y", "b": "\U0001f600"}
    assert request(served.http + "/v1/chat/completions", b'{"model": "mini", "messages": "\\uDC00"}')[0] == 400
    with open_client(served) as session:
        session.socket.send('{"type": "session.update", "session": {"type": "realtime", "instructions": "\\ud800"}}')
        assert session.until("session.updated")[-1]["session"]["instructions"] == "?"


# Responses API


def test_responses_api(client, served):
    answer = client.responses.create(model="mini", input="hello", instructions="Be kind.")
    assert answer.output_text.startswith("you said hello and I answer")
    assert answer.status == "completed" and answer.usage.output_tokens > 5
    assert served.engine.sessions[-1].settings.instructions == "Be kind."
    tools = [{"type": "function", "name": "weather", "description": "", "parameters": {}}]
    called = client.responses.create(model="mini", input="call", tools=tools).output[0]
    assert (called.type, called.name) == ("function_call", "weather")
    items = [
        {"role": "user", "content": "call"},
        called.model_dump(exclude={"id", "status"}, exclude_none=True),
        {"type": "function_call_output", "call_id": called.call_id, "output": "sunny"},
    ]
    again = client.responses.create(model="mini", input=items, tools=tools)
    assert "you said sunny" in again.output_text


def test_streamed_response(client):
    events = list(client.responses.create(model="mini", input="hello", max_output_tokens=3, stream=True))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == "you said hello"
    assert kinds[-1] == "response.incomplete" and events[-1].response.output_text == "you said hello"
    assert [event.sequence_number for event in events] == list(range(len(events)))


def test_responses_api_refuses_what_it_cannot_do(client):
    for fields, param in (
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ):
        with pytest.raises(openai.BadRequestError) as error:
            client.responses.create(model="mini", input="hello", **fields)
        assert error.value.param == param


# Realtime


def test_session_has_sampling_settings_of_its_own(served):
    with open_client(served) as first, open_client(served) as second:
        assert first.seen[0]["session"]["seed"] != second.seen[0]["session"]["seed"]
        settings = served.engine.sessions[-1].settings
        assert settings.seed == second.seen[0]["session"]["seed"]
        second.update(temperature=0.5, top_p=0.7, seed=11)
        settings = served.engine.sessions[-1].settings
        assert (settings.temperature, settings.top_p, settings.seed) == (0.5, 0.7, 11)


def test_settings_without_effect_are_answered_with_warnings(served):
    with open_client(served) as session:
        changes = {"audio": {"output": {"voice": "alloy"}}, "truncation": "disabled", "magic": 1, "model": "gpt-9"}
        session.send("session.update", session={"type": "realtime", **changes})
        warnings = session.until("session.updated")[-1]["warnings"]
        assert [line.split(" ")[0] for line in warnings] == [
            "session.audio.output.voice",
            "session.truncation",
            "session.magic",
            "session.model",
        ]
        session.update()
        assert "warnings" not in session.seen[-1]
        session.send("input_audio_buffer.clear", extra=1)
        assert session.until("input_audio_buffer.cleared")[-1]["warnings"] == [
            "extra is unknown to this server and has no effect"
        ]


def test_beta_settings_are_refused_with_their_new_names(served):
    with open_client(served) as session:
        session.send("session.update", session={"type": "realtime", "input_audio_format": "g711_ulaw"})
        error = session.until("error")[-1]["error"]
        assert (error["param"], error["code"]) == ("session.input_audio_format", "unknown_parameter")
        assert "session.audio.input.format" in error["message"]
        session.send("response.create", response={"modalities": ["text"]})
        assert session.until("error")[-1]["error"]["param"] == "response.modalities"


def test_another_model_s_name_is_answered_with_a_header(served):
    with open_client(served, "?model=gpt-realtime") as session:
        assert session.seen[0]["session"]["model"] == "mini"
        assert "mini responds" in session.socket.response.headers["warning"]


@pytest.mark.parametrize("rate", [8_000, 16_000])
def test_pcm_at_other_rates(served, rate, monkeypatch):
    monkeypatch.setattr("tests.server.conftest.checked", lambda event: event)  # OpenAI has 24 kHz only
    pcm = voice(1.0)
    wire = WireEncoder(f"audio/pcm;rate={rate}").push(pcm)
    assert abs(len(wire) - 2 * rate) <= 4
    back = WireDecoder(f"audio/pcm;rate={rate}").push(wire)
    assert abs(len(back) - SAMPLE_RATE) <= 6 and np.sqrt(np.mean(back**2)) == pytest.approx(0.3 / 2**0.5, rel=0.05)
    format = {"type": "audio/pcm", "rate": rate}
    with open_client(served) as session:
        session.update(audio={"input": {"format": format, "turn_detection": None}, "output": {"format": format}})
        session.send("input_audio_buffer.append", audio=base64.b64encode(wire).decode())
        session.send("input_audio_buffer.commit")
        item = session.until("conversation.item.done")[-1]["item"]
        session.send("response.create", response={"max_output_tokens": 4})
        events = session.until("response.done")
        audio = b"".join(base64.b64decode(e["delta"]) for e in events if e["type"] == "response.output_audio.delta")
        assert abs(len(audio) - 2 * rate * 4 * 0.12) <= 16
        session.send("conversation.item.retrieve", item_id=item["id"])
        kept = session.until("conversation.item.retrieved")[-1]["item"]["content"][0]["audio"]
        assert abs(len(base64.b64decode(kept)) - len(wire)) <= 2


@pytest.mark.parametrize("manual", [False, True])
def test_transcription_session(served, manual):
    detection = None if manual else {"type": "server_vad", "silence_duration_ms": 100}
    with open_client(served, "?intent=transcription") as session:
        assert session.seen[0]["session"]["type"] == "transcription"
        session.send(
            "session.update", session={"type": "transcription", "audio": {"input": {"turn_detection": detection}}}
        )
        session.until("session.updated")
        for number in range(2):
            session.append(voice(0.5))
            session.append(silence(0.3))
            if manual:
                session.send("input_audio_buffer.commit")
            events = session.until("conversation.item.input_audio_transcription.completed")
            assert "of speech" in events[-1]["transcript"]
            assert not [event for event in events if event["type"].startswith("response.")], number
        session.send("response.create")
        assert "no responses" in session.until("error")[-1]["error"]["message"]
        session.send("session.update", session={"type": "realtime"})
        assert session.until("error")[-1]["error"]["param"] == "session.type"


def test_silent_session_ends():
    from speechgpt2.server.config import LimitsConfig

    with serving(limits=LimitsConfig(first_message_seconds=0.3)) as served, open_client(served) as session:
        assert session.until("error", 5.0)[-1]["error"]["code"] == "session_expired"
