"""The events of a response: in the protocol's order, and valid for openai-python's types."""

import base64

import numpy as np
import pytest

from speechgpt2.server.channel import Channel
from speechgpt2.server.config import LimitsConfig
from speechgpt2.server.events import EventSender
from speechgpt2.server.items import ContentPart, ConversationItem, ItemList
from speechgpt2.server.metrics import Metrics
from speechgpt2.server.response import InputUsage, RealtimeResponse
from speechgpt2.server.schema import ProtocolError
from speechgpt2.server.session_config import SessionConfig
from speechgpt2.types import SAMPLE_RATE
from tests.server.events import checked


def split(text):
    return text.split()


SPOKEN = split("""response.created response.output_item.added conversation.item.added response.content_part.added
response.output_audio_transcript.delta response.output_audio.delta response.output_audio.delta
response.output_audio.done response.output_audio_transcript.done response.content_part.done
conversation.item.done response.output_item.done response.done""")
WRITTEN = split("""response.created response.output_item.added conversation.item.added response.content_part.added
response.output_text.delta response.output_text.delta response.output_text.done response.content_part.done
conversation.item.done response.output_item.done response.done""")
CALLED = split("""response.created response.output_item.added conversation.item.added
response.function_call_arguments.delta
response.function_call_arguments.done conversation.item.done response.output_item.done response.done""")


class RecordingSerializer:
    """Keeps the events that pass through a channel."""

    def __init__(self):
        self.events = []

    def serialize(self, event):
        self.events.append(checked(event))


def make_response(changes=(), metadata=None):
    items, serializer = ItemList(), RecordingSerializer()
    items.add(ConversationItem("first", parts=[ContentPart("input_text", "Hello")]))
    events = EventSender(Channel(serializer, LimitsConfig()), Metrics(slots=1))
    config, usage = SessionConfig().updated(dict(changes)), InputUsage(2, SAMPLE_RATE)
    return RealtimeResponse(events, config, items, 7, usage, metadata), serializer.events


def types(events):
    return [event["type"] for event in events]


def test_spoken_response():
    response, events = make_response(metadata={"ask": "me"})
    response.start()
    response.add_text("Hello")
    response.add_audio(np.full(2880, 0.5, np.float32), now=1.0)
    response.finish("completed")
    assert types(events) == SPOKEN
    assert events[0]["response"]["metadata"] == events[-1]["response"]["metadata"] == {"ask": "me"}
    assert events[0]["response"]["status"] == "in_progress" and events[0]["response"]["output"] == []
    assert events[2]["previous_item_id"] == "first"
    audio = b"".join(base64.b64decode(e["delta"]) for e in events if e["type"] == "response.output_audio.delta")
    assert len(audio) == 2 * 2880 and len(base64.b64decode(events[5]["delta"])) <= 2 * 0.08 * SAMPLE_RATE
    done = events[-1]["response"]
    assert done["status"] == "completed" and done["output"][0]["content"] == [
        {"type": "output_audio", "transcript": "Hello"}
    ]
    assert done["usage"]["output_token_details"] == {"text_tokens": 1, "audio_tokens": 1}
    assert done["usage"]["input_tokens"] == 2 + 9 and done["usage"]["total_tokens"] == 13
    assert response.message.parts[0].audio == audio


def test_written_response():
    response, events = make_response({"output_modalities": ["text"]})
    response.start()
    response.add_text("One")
    response.add_text(" two")
    response.finish("completed")
    assert types(events) == WRITTEN
    assert events[-1]["response"]["output"][0]["content"] == [{"type": "output_text", "text": "One two"}]


def test_tool_call():
    response, events = make_response()
    response.start()
    response.add_tool_call("weather", '{"city": "Paris"}')
    response.finish("completed")
    assert types(events) == CALLED
    added, done = events[2]["item"], events[4]
    assert added["call_id"] == done["call_id"] and added["name"] == "weather" and added["status"] == "in_progress"
    assert done["arguments"] == '{"city": "Paris"}' and events[-2]["item"]["status"] == "completed"


def test_text_and_tool_call_are_two_items():
    response, events = make_response()
    response.start()
    response.add_text("Let me look.")
    response.add_tool_call("weather", "{}")
    response.finish("completed")
    assert [item["type"] for item in events[-1]["response"]["output"]] == ["message", "function_call"]
    assert [e["output_index"] for e in events if e["type"] == "response.output_item.added"] == [0, 1]


@pytest.mark.parametrize("status", ["cancelled", "incomplete", "failed"])
def test_incomplete_response_closes_its_message(status):
    response, events = make_response()
    response.start()
    response.add_text("Hel")
    response.finish(status, *(("turn_detected",) if status == "cancelled" else ()))
    assert types(events)[-5:] == SPOKEN[-5:]
    assert events[-1]["response"]["output"][0]["status"] == "incomplete"
    assert events[-1]["response"]["status"] == status


def test_empty_response():
    response, events = make_response()
    response.start()
    response.finish("cancelled", "client_cancelled")
    assert types(events) == ["response.created", "response.done"]
    assert events[-1]["response"]["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}


def test_g711_response():
    response, events = make_response({"audio": {"output": {"format": {"type": "audio/pcmu"}}}})
    response.start()
    response.add_audio(np.zeros(2880, np.float32), now=1.0)
    data = b"".join(base64.b64decode(e["delta"]) for e in events if e["type"] == "response.output_audio.delta")
    assert data == b"\xff" * 960


# the items themselves


def make_items(*ids):
    result = ItemList()
    for id in ids:
        result.add(ConversationItem(id, parts=[ContentPart("input_text", id)]))
    return result


def ids(items):
    return [item.id for item in items]


def test_items_are_inserted_in_order():
    items = make_items("a", "b")
    assert (
        items.add(ConversationItem("c"), "a") == "a"
        and items.add(ConversationItem("d"), "root") is None
        and items.add(ConversationItem("e")) == "b"
    )
    assert ids(items) == ["d", "a", "c", "b", "e"]
    assert items.previous_id("c") == "a" and items.previous_id("d") is None


@pytest.mark.parametrize(
    ("action", "code"),
    [
        (lambda items: items.add(ConversationItem("a")), "item_create_duplicate_item_id"),
        (lambda items: items.add(ConversationItem("x"), "y"), "item_create_invalid_previous_item_id"),
        (lambda items: items.get("x", "item_retrieve_invalid_item_id"), "item_retrieve_invalid_item_id"),
        (lambda items: items.delete("x"), "item_delete_invalid_item_id"),
    ],
)
def test_invalid_item_operations(action, code):
    items = make_items("a", "b")
    with pytest.raises(ProtocolError) as error:
        action(items)
    assert error.value.code == code and ids(items) == ["a", "b"]


def test_old_audio_is_dropped(monkeypatch):
    monkeypatch.setattr("speechgpt2.server.items.MAX_AUDIO_BYTES", 100)
    items = make_items("a", "b")
    first, second = items.get("a", "").parts[0], items.get("b", "").parts[0]
    items.append_audio(first, b"x" * 80)
    items.append_audio(second, b"y" * 80)
    assert not first.audio and len(second.audio) == 80
    assert items.truncate(items.get("b", ""), 1) == 1 and len(second.audio) == 48
    items.append_audio(first, b"z" * 52)
    assert len(first.audio) == 52 and len(second.audio) == 48
    assert items.truncate(items.get("a", ""), 5) == 2 and not first.text  # 132 bytes in all
