"""The Realtime protocol over a real socket: order of events, errors, history."""

import asyncio
import base64
import contextlib
import time

import pytest

from speechgpt2.errors import UserError
from speechgpt2.server.call_session import CallSerializer, CallSession
from speechgpt2.server.channel import Channel
from speechgpt2.server.config import LimitsConfig, ServerConfig
from speechgpt2.server.hosted_tools import HostedTools
from speechgpt2.server.messages import MESSAGE_TYPES, RealtimeSerializer
from speechgpt2.server.metrics import Metrics
from speechgpt2.server.personas import Personas
from speechgpt2.server.realtime import RealtimeSession
from speechgpt2.server.schema import ProtocolError
from speechgpt2.server.session_config import SessionConfig
from speechgpt2.server.settings import dialogue_settings, session_settings
from tests.server.conftest import open_client, silence, voice
from tests.server.fake import FakeDialogue, FakeEngine, FakeSession
from tests.server.test_response import CALLED, SPOKEN

QUICK = {"audio": {"input": {"turn_detection": {"type": "server_vad", "silence_duration_ms": 100}}}}
MANUAL = {"audio": {"input": {"turn_detection": None}}}


def types(events, without=()):
    return [event["type"] for event in events if event["type"] not in without]


def unique(names):
    """Each name once, in the order of its first occurrence."""
    return list(dict.fromkeys(names))


def test_session_created_holds_the_settings(served):
    with open_client(served, "?model=gpt-realtime") as client:
        session = client.seen[0]["session"]
        assert session["id"].startswith("sess_") and session["model"] == "mini"
        detection = session["audio"]["input"]["turn_detection"]
        assert (detection["threshold"], detection["prefix_padding_ms"], detection["silence_duration_ms"]) == (
            0.5,
            300,
            500,
        )
        assert client.update(instructions="Be brief.")["instructions"] == "Be brief."
        assert served.engine.sessions[-1].settings.instructions == "Be brief."


def test_spoken_turn(served):
    with open_client(served) as client:
        client.update(**QUICK, max_output_tokens=3)
        client.append(voice(0.4))
        client.append(silence(0.2))
        events = client.until("response.done")
        assert types(events)[:5] == [
            "input_audio_buffer.speech_started",
            "input_audio_buffer.speech_stopped",
            "input_audio_buffer.committed",
            "conversation.item.added",
            "conversation.item.done",
        ]
        assert unique(types(events)[5:]) == unique(SPOKEN)
        item = events[0]["item_id"]
        assert all(event["item_id"] == item for event in events[:3]) and events[3]["item"]["id"] == item
        assert events[1]["audio_end_ms"] == pytest.approx(400, abs=40)
        assert events[-1]["response"]["status"] == "incomplete"
        assert events[-1]["response"]["status_details"]["reason"] == "max_output_tokens"
        assert events[-1]["response"]["output"][0]["content"][0]["transcript"] == "you said 0.5"

        client.send("conversation.item.retrieve", item_id=item)
        kept = client.until("conversation.item.retrieved")[-1]["item"]["content"][0]
        assert kept["transcript"] == "0.5 s of speech" and len(base64.b64decode(kept["audio"])) > 2 * 24_000 * 0.3


def test_transcription_on_request(served):
    with open_client(served) as client:
        client.update(audio={"input": {**QUICK["audio"]["input"], "transcription": {"model": "whisper-1"}}})
        client.append(voice(0.3))
        client.append(silence(0.2))
        events = client.until("conversation.item.input_audio_transcription.completed")
        assert events[-2]["delta"] == events[-1]["transcript"] == "0.4 s of speech"
        assert events[-1]["item_id"] == events[0]["item_id"] and events[-1]["usage"]["seconds"] > 0.3


def test_semantic_vad(served):
    with open_client(served) as client:
        session = client.update(audio={"input": {"turn_detection": {"type": "semantic_vad", "eagerness": "high"}}})
        assert session["audio"]["input"]["turn_detection"]["eagerness"] == "high"
        client.append(voice(0.3))
        client.append(silence(0.4))
        client.until("response.created")


def test_manual_turns(served):
    with open_client(served) as client:
        client.update(**MANUAL)
        client.append(voice(0.3))
        client.send("input_audio_buffer.commit")
        client.send("response.create", response={"metadata": {"ask": "1"}, "max_output_tokens": 2})
        events = client.until("response.done")
        assert types(events)[:4] == [
            *("input_audio_buffer.committed", "conversation.item.added", "conversation.item.done", "response.created")
        ]
        assert events[3]["response"]["metadata"] == events[-1]["response"]["metadata"] == {"ask": "1"}
        for own, said in (({"instructions": "be brief"}, "as told, be brief:"), ({}, "you said")):
            client.send("response.create", response=own)
            [item] = client.until("response.done")[-1]["response"]["output"]
            assert item["content"][0]["transcript"].startswith(said)
        client.send("input_audio_buffer.append", audio="")
        client.send("input_audio_buffer.commit", event_id="mine")
        error = client.until("error")[-1]["error"]
        assert error["code"] == "input_audio_buffer_commit_empty" and error["event_id"] == "mine"
        client.append(voice(0.3))
        client.send("input_audio_buffer.clear")
        client.until("input_audio_buffer.cleared")
        client.send("input_audio_buffer.commit")
        assert client.until("error")[-1]["error"]["code"] == "input_audio_buffer_commit_empty"


def test_written_turn_and_tool_call(served):
    with open_client(served) as client:
        client.update(output_modalities=["text"], tools=[{"type": "function", "name": "weather", "parameters": {}}])
        client.write("hello")
        done = client.until("response.done")[-1]["response"]
        assert done["output"][0]["content"][0]["text"].startswith("you said hello")
        client.write("please call")
        events = client.until("response.done")
        assert types(events)[2:] == CALLED  # after the item of the user's
        client.send("conversation.item.create", item={"type": "function_call_output", "call_id": "x", "output": "sun"})
        assert client.until("conversation.item.done")[-1]["item"]["output"] == "sun"


def test_session_survives_a_failed_response(served):
    with open_client(served) as client:
        client.write("fail")
        done = client.until("response.done")[-1]["response"]
        assert done["status"] == "failed" and done["status_details"]["error"]["message"] == "the model failed"
        client.update(output_modalities=["text"])
        served.engine.sessions[-1]._reply = None
        client.write("hello")
        assert client.until("response.done")[-1]["response"]["status"] == "completed"


def interrupt_response(client):
    """Ask for a long response and speak into it after half a second."""
    client.update(**QUICK)
    client.write("tell me all")
    client.until("response.output_audio.delta")
    time.sleep(0.6)
    client.append(voice(0.2))


def test_barge_in_stops_response_and_cuts_history(served):
    with open_client(served) as client:
        interrupt_response(client)
        events = client.until("response.done")
        order = types(events, without={"response.output_audio.delta", "response.output_audio_transcript.delta"})
        assert order[0] == "input_audio_buffer.speech_started" and order[-1] == "response.done"
        done = events[-1]["response"]
        assert done["status"] == "cancelled" and done["status_details"]["reason"] == "turn_detected"
        assert done["output"][0]["status"] == "incomplete"
        memory = served.engine.sessions[-1].memory
        number = max(number for number, said in memory.items() if said.startswith("assistant"))
        assert 2 <= len(memory[number].split()) <= 9

        item = done["output"][0]["id"]
        client.send("conversation.item.truncate", item_id=item, content_index=0, audio_end_ms=250)
        assert client.until("conversation.item.truncated")[-1]["audio_end_ms"] == 250
        assert memory[number] == "assistant: you said"
        client.send("conversation.item.retrieve", item_id=item)
        part = client.until("conversation.item.retrieved")[-1]["item"]["content"][0]
        assert len(base64.b64decode(part["audio"])) == 2 * 24 * 250 and not part["transcript"]


def test_truncate_clamps(served):
    with open_client(served) as client:
        client.update(max_output_tokens=2)
        client.write("hello")
        item = client.until("response.done")[-1]["response"]["output"][0]["id"]
        for asked, given in ((999_999, 240), (100, 100), (-5, 0)):
            client.send("conversation.item.truncate", item_id=item, content_index=0, audio_end_ms=asked)
            assert client.until("conversation.item.truncated")[-1]["audio_end_ms"] == given


def test_truncate_during_a_response(served):
    with open_client(served) as client:
        client.update(max_output_tokens=6)
        client.write("hello")
        delta = client.until("response.output_audio.delta")[-1]
        client.send("conversation.item.truncate", item_id=delta["item_id"], content_index=0, audio_end_ms=0)
        client.until("conversation.item.truncated")
        client.until("response.done")
        memory = served.engine.sessions[-1].memory
        served.wait(lambda: memory[max(memory)] == "assistant:")


def test_cancel(served):
    with open_client(served) as client:
        client.send("response.cancel", event_id="early")
        error = client.until("error")[-1]["error"]
        assert error["code"] == "response_cancel_not_active" and error["message"].startswith("Cancellation failed")
        client.write("tell me all")
        client.until("response.output_audio.delta")
        client.send("response.create", event_id="second")
        events = client.until("error")
        assert events[-1]["error"]["code"] == "conversation_already_has_active_response"
        assert events[-1]["error"]["event_id"] == "second"
        client.send("response.cancel")
        done = client.until("response.done")[-1]["response"]
        assert done["status"] == "cancelled" and done["status_details"]["reason"] == "client_cancelled"


def test_item_operations(served):
    with open_client(served) as client:
        hello = {"type": "message", "role": "user", "id": "one", "content": [{"type": "input_text", "text": "Hello"}]}
        client.send("conversation.item.create", item=hello)
        added, done = client.until("conversation.item.done")
        assert added["type"] == "conversation.item.added" and added["previous_item_id"] is None
        assert added["item"] == done["item"] and added["item"]["content"] == [{"type": "input_text", "text": "Hello"}]
        client.send("conversation.item.create", item={**hello, "id": "zero"}, previous_item_id="root")
        assert client.until("conversation.item.done")[-1]["previous_item_id"] is None
        memory = served.engine.sessions[-1].memory
        assert list(memory.values()) == ["user: Hello", "user: Hello"]
        client.send("conversation.item.delete", item_id="one")
        client.until("conversation.item.deleted")
        assert list(memory) == [2]
        for kind, fields, code in (
            ("retrieve", {"item_id": "one"}, "item_retrieve_invalid_item_id"),
            ("delete", {"item_id": "one"}, "item_delete_invalid_item_id"),
            ("truncate", {"item_id": "one", "audio_end_ms": 1}, "item_truncate_invalid_item_id"),
            ("truncate", {"item_id": "zero", "audio_end_ms": 1}, "invalid_value"),
            ("create", {"item": {**hello, "id": "zero"}}, "item_create_duplicate_item_id"),
            ("create", {"item": hello, "previous_item_id": "x"}, "item_create_invalid_previous_item_id"),
        ):
            client.send(f"conversation.item.{kind}", event_id=f"e-{code}", **fields)
            error = client.until("error")[-1]["error"]
            assert (error["code"], error["event_id"]) == (code, f"e-{code}")


def test_spoken_items_greeting_and_system_message(served):
    from speechgpt2 import audio

    data = base64.b64encode(audio.to_pcm16(voice(0.5))).decode()
    with open_client(served) as client:
        for role, part in (
            ("assistant", {"type": "output_audio", "audio": data, "transcript": "Welcome"}),
            ("user", {"type": "input_audio", "audio": data}),
            ("system", {"type": "input_text", "text": "Speak slowly."}),
        ):
            client.send("conversation.item.create", item={"type": "message", "role": role, "content": [part]})
            client.until("conversation.item.done")
        session = served.engine.sessions[-1]
        assert list(session.memory.values()) == ["user: 0.5 s of speech"]
        assert session.settings.greeting.text == "Welcome" and session.settings.greeting.codes.shape == (12, 3)
        assert session.settings.instructions == "Speak slowly."


@pytest.mark.parametrize(
    ("message", "code", "param"),
    [
        ("{", "invalid_json", None),
        ("[1]", "invalid_json", None),
        ('{"type": "nonsense", "event_id": "x"}', "invalid_value", "type"),
        ('{"type": "input_audio_buffer.append", "audio": "%%%"}', "invalid_value", "audio"),
        ('{"type": "input_audio_buffer.append", "audio": "QUJD"}', "invalid_value", None),
        ('{"type": "session.update", "session": {"instructions": "refuse me"}}', "invalid_value", None),
        (
            '{"type": "response.create", "response": {"conversation": "none"}}',
            "unsupported_value",
            "response.conversation",
        ),
        ('{"type": "output_audio_buffer.clear"}', "invalid_value", "type"),
        (b"\xff\xfe", "invalid_json", None),
    ],
)
def test_session_survives_invalid_messages(served, message, code, param):
    with open_client(served) as client:
        client.socket.send(message)
        error = client.until("error")[-1]["error"]
        assert (error["code"], error["param"]) == (code, param)
        assert client.update(instructions="still here")["instructions"] == "still here"


def test_g711_in_both_directions(served):
    from speechgpt2.server.audio_formats import WireDecoder, WireEncoder

    g711 = {"format": {"type": "audio/pcmu"}}
    with open_client(served) as client:
        client.update(audio={"input": {**g711, **QUICK["audio"]["input"]}, "output": g711}, max_output_tokens=3)
        encoder = WireEncoder("audio/pcmu")
        for pcm in (voice(0.3), silence(0.2)):
            client.send("input_audio_buffer.append", audio=base64.b64encode(encoder.push(pcm)).decode())
        events = client.until("response.done")
        data = b"".join(base64.b64decode(e["delta"]) for e in events if e["type"] == "response.output_audio.delta")
        assert len(data) == 3 * 960 and abs(WireDecoder("audio/pcmu").push(data)).max() == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize("message_type", MESSAGE_TYPES.values(), ids=lambda message_type: message_type.__name__)
def test_every_message_type_is_handled(message_type):
    """A message without fields may fail for what it lacks, but not for its type."""

    async def handle():
        config = SessionConfig()
        dialogue = FakeDialogue(FakeSession(session_settings(config)), dialogue_settings(config))
        channel = Channel(RealtimeSerializer(), LimitsConfig())
        session = RealtimeSession(
            dialogue, FakeEngine(), config, channel, Metrics(slots=1), HostedTools(ServerConfig()), Personas()
        )
        with contextlib.suppress(AttributeError, ProtocolError, UserError):
            await session.handle_message(message_type.model_construct())

    asyncio.run(handle())


def test_call_keeps_its_audio_when_the_settings_name_another_format():
    """RTP decides the format of a call's audio, whatever the settings say."""

    async def handle():
        config = SessionConfig()
        dialogue = FakeDialogue(FakeSession(session_settings(config)), dialogue_settings(config))
        channel, tools = Channel(CallSerializer(), LimitsConfig()), HostedTools(ServerConfig())
        session = CallSession(dialogue, FakeEngine(), config, channel, Metrics(1), tools, Personas())
        session.append_audio(bytes(2 * 24 * 200))
        update = {"audio": {"input": {"format": {"type": "audio/pcmu"}}}}
        await session.handle_message(MESSAGE_TYPES["session.update"].model_construct(session=update, warnings=[]))
        session.append_audio(bytes(2 * 24 * 200))
        return session.user_turns.microphone

    microphone = asyncio.run(handle())
    assert microphone.format == "audio/pcm" and microphone.uncommitted_ms == 400
    assert len(microphone.take(0, microphone.received)) == 2 * 24 * 400
