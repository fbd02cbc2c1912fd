"""What clients send: read, merged, and rejected with the field named."""

import pytest

from speechgpt2.server.messages import parse_message
from speechgpt2.server.schema import ProtocolError, parse_json
from speechgpt2.server.session_config import SessionConfig


def rejected(message):
    with pytest.raises(ProtocolError) as error:
        parse_message(message)
    return error.value.code, error.value.param


@pytest.mark.parametrize(
    ("message", "code", "param"),
    [
        ({}, "missing_required_parameter", "type"),
        ({"type": "nonsense"}, "invalid_value", "type"),
        ({"type": ["x"]}, "invalid_value", "type"),
        ({"type": "input_audio_buffer.append"}, "missing_required_parameter", "audio"),
        ({"type": "input_audio_buffer.append", "audio": 3}, "invalid_value", "audio"),
        ({"type": "conversation.item.truncate", "item_id": "a", "audio_end_ms": "3"}, "invalid_value", "audio_end_ms"),
        (
            {"type": "conversation.item.create", "item": {"type": "message", "role": "user"}},
            *("missing_required_parameter", "item.content"),
        ),
        ({"type": "conversation.item.create", "item": {"type": "image"}}, "invalid_value", "item"),
        (
            {
                "type": "conversation.item.create",
                "item": {"type": "message", "role": "user", "content": [{"type": "input_image"}]},
            },
            *("invalid_value", "item.content[0].type"),
        ),
        (
            {"type": "response.create", "response": {"max_output_tokens": 0}},
            "invalid_value",
            "response.max_output_tokens",
        ),
        ({"type": "response.create", "response": {"metadata": {"a": 1}}}, "invalid_value", "response.metadata.a"),
    ],
)
def test_bad_values_name_their_field(message, code, param):
    assert rejected(message) == (code, param)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        (
            {"audio": {"input": {"turn_detection": {"type": "server_vad", "threshold": 2}}}},
            "session.audio.input.turn_detection.threshold",
        ),
        ({"audio": {"input": {"turn_detection": {"threshold": "x"}}}}, "session.audio.input.turn_detection.threshold"),
        ({"audio": {"input": {"turn_detection": {"type": "magic"}}}}, "session.audio.input.turn_detection"),
        ({"audio": {"input": {"format": {"type": "audio/mp3"}}}}, "session.audio.input.format.type"),
        ({"audio": {"output": {"format": {"type": "audio/pcm", "rate": 44100}}}}, "session.audio.output.format.rate"),
        ({"audio": 7}, "session.audio"),
        ({"output_modalities": ["video"]}, "session.output_modalities[0]"),
        ({"type": "dictation"}, "session.type"),
        ({"voice": "alloy"}, "session.voice"),
        ({"turn_detection": None}, "session.turn_detection"),
        ({"temperature": 3}, "session.temperature"),
        ({"tools": [{"type": "function"}]}, "session.tools[0].name"),
        ({"instructions": 5}, "session.instructions"),
    ],
)
def test_bad_settings_name_their_field(changes, param):
    with pytest.raises(ProtocolError) as error:
        SessionConfig().updated(changes)
    assert error.value.param == param


@pytest.mark.parametrize("text", ["", "{", "[]", "3", b"\xff", "[" * 100_000])
def test_message_must_be_a_json_object(text):
    with pytest.raises(ProtocolError) as error:
        parse_json(text)
    assert error.value.code == "invalid_json"


def test_update_keeps_other_settings():
    session = SessionConfig().updated({"instructions": "Be brief.", "audio": {"output": {"voice": "cedar"}}})
    session = session.updated({"audio": {"input": {"turn_detection": {"threshold": 0.7}}}, "unheard_of": {"x": 1}})
    assert session.instructions == "Be brief." and session.audio.output.voice == "cedar"
    assert session.audio.input.turn_detection.threshold == 0.7
    assert session.audio.input.turn_detection.silence_duration_ms == 500


def test_changing_turn_detection_resets_its_settings():
    session = SessionConfig().updated(
        {"audio": {"input": {"turn_detection": {"type": "server_vad", "threshold": 0.7}}}}
    )
    semantic = session.updated({"audio": {"input": {"turn_detection": {"type": "semantic_vad", "eagerness": "low"}}}})
    assert semantic.audio.input.turn_detection.model_dump() == {
        "type": "semantic_vad",
        "eagerness": "low",
        "create_response": True,
        "interrupt_response": True,
    }
    assert semantic.updated({"audio": {"input": {"turn_detection": None}}}).audio.input.turn_detection is None


def test_defaults_of_agents_sdks_are_accepted():
    session = SessionConfig().updated(
        {
            "type": "realtime",
            "model": "mini",
            "tracing": "auto",
            "output_modalities": ["audio"],
            "audio": {
                "input": {
                    "format": {"type": "audio/pcm", "rate": 24000},
                    "transcription": {"model": "gpt-4o-mini-transcribe"},
                    "turn_detection": {"type": "semantic_vad", "interrupt_response": True},
                    "noise_reduction": None,
                },
                "output": {"format": {"type": "audio/pcm", "rate": 24000}, "voice": "ash", "speed": None},
            },
            "tools": [],
            "prompt": None,
        }
    )
    assert session.tracing == "auto" and session.audio.output.speed == 1.0
