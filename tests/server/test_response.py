"""An answer's events: in the protocol's order, and as openai-python's types read them."""

import base64

import numpy as np
import pytest

from speechgpt2.server.conversation import Conversation, Item, Part
from speechgpt2.server.response import Heard, Response
from speechgpt2.server.wire import Session, WireError
from speechgpt2.types import SAMPLE_RATE
from tests.server.events import checked


def words(text):
    return text.split()


SPOKEN = words("""response.created response.output_item.added conversation.item.added response.content_part.added
response.output_audio_transcript.delta response.output_audio.delta response.output_audio.delta
response.output_audio.done response.output_audio_transcript.done response.content_part.done
conversation.item.done response.output_item.done response.done""")
WRITTEN = words("""response.created response.output_item.added conversation.item.added response.content_part.added
response.output_text.delta response.output_text.delta response.output_text.done response.content_part.done
conversation.item.done response.output_item.done response.done""")
CALLED = words("""response.created response.output_item.added conversation.item.added
response.function_call_arguments.delta
response.function_call_arguments.done conversation.item.done response.output_item.done response.done""")


def answer(changes=(), metadata=None):
    events, conversation = [], Conversation()
    conversation.add(Item("first", parts=[Part("input_text", "Hello")]))

    def emit(type, **fields):
        events.append(checked({"type": type, "event_id": f"event_{len(events)}", **fields}))

    return Response(emit, Session().updated(dict(changes)), conversation, 7, Heard(2, SAMPLE_RATE), metadata), events


def types(events):
    return [event["type"] for event in events]


def test_a_spoken_answer():
    response, events = answer(metadata={"ask": "me"})
    response.begin()
    response.write("Hello")
    response.speak(np.full(2880, 0.5, np.float32), now=1.0)
    response.end("completed")
    assert types(events) == SPOKEN
    assert events[0]["response"]["metadata"] == events[-1]["response"]["metadata"] == {"ask": "me"}
    assert events[0]["response"]["status"] == "in_progress" and events[0]["response"]["output"] == []
    assert events[2]["previous_item_id"] == "first"
    sound = b"".join(base64.b64decode(e["delta"]) for e in events if e["type"] == "response.output_audio.delta")
    assert len(sound) == 2 * 2880 and len(base64.b64decode(events[5]["delta"])) <= 2 * 0.08 * SAMPLE_RATE
    done = events[-1]["response"]
    assert done["status"] == "completed" and done["output"][0]["content"] == [
        {"type": "output_audio", "transcript": "Hello"}
    ]
    assert done["usage"]["output_token_details"] == {"text_tokens": 1, "audio_tokens": 1}
    assert done["usage"]["input_tokens"] == 2 + 9 and done["usage"]["total_tokens"] == 13
    assert response.message.parts[0].sound == sound


def test_a_written_answer():
    response, events = answer({"output_modalities": ["text"]})
    response.begin()
    response.write("One")
    response.write(" two")
    response.end("completed")
    assert types(events) == WRITTEN
    assert events[-1]["response"]["output"][0]["content"] == [{"type": "output_text", "text": "One two"}]


def test_a_call_of_a_function():
    response, events = answer()
    response.begin()
    response.call("weather", '{"city": "Paris"}')
    response.end("completed")
    assert types(events) == CALLED
    added, done = events[2]["item"], events[4]
    assert added["call_id"] == done["call_id"] and added["name"] == "weather" and added["status"] == "in_progress"
    assert done["arguments"] == '{"city": "Paris"}' and events[-2]["item"]["status"] == "completed"


def test_words_and_then_a_call_are_two_items():
    response, events = answer()
    response.begin()
    response.write("Let me look.")
    response.call("weather", "{}")
    response.end("completed")
    assert [item["type"] for item in events[-1]["response"]["output"]] == ["message", "function_call"]
    assert [e["output_index"] for e in events if e["type"] == "response.output_item.added"] == [0, 1]


@pytest.mark.parametrize("status", ["cancelled", "incomplete", "failed"])
def test_an_answer_that_is_cut_short_closes_all_that_is_open(status):
    response, events = answer()
    response.begin()
    response.write("Hel")
    response.end(status, *(("turn_detected",) if status == "cancelled" else ()))
    assert types(events)[-5:] == SPOKEN[-5:]
    assert events[-1]["response"]["output"][0]["status"] == "incomplete"
    assert events[-1]["response"]["status"] == status


def test_an_answer_without_content_is_created_and_done():
    response, events = answer()
    response.begin()
    response.end("cancelled", "client_cancelled")
    assert types(events) == ["response.created", "response.done"]
    assert events[-1]["response"]["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}


def test_telephone_sound():
    response, events = answer({"audio": {"output": {"format": {"type": "audio/pcmu"}}}})
    response.begin()
    response.speak(np.zeros(2880, np.float32), now=1.0)
    data = b"".join(base64.b64decode(e["delta"]) for e in events if e["type"] == "response.output_audio.delta")
    assert data == b"\xff" * 960


# the items themselves


def conversation(*ids):
    result = Conversation()
    for id in ids:
        result.add(Item(id, parts=[Part("input_text", id)]))
    return result


def ids(items):
    return [item.id for item in items]


def test_items_are_put_where_they_belong():
    items = conversation("a", "b")
    assert items.add(Item("c"), "a") == "a" and items.add(Item("d"), "root") is None and items.add(Item("e")) == "b"
    assert ids(items) == ["d", "a", "c", "b", "e"]
    assert items.before("c") == "a" and items.before("d") is None


@pytest.mark.parametrize(
    ("action", "code"),
    [
        (lambda items: items.add(Item("a")), "item_create_duplicate_item_id"),
        (lambda items: items.add(Item("x"), "y"), "item_create_invalid_previous_item_id"),
        (lambda items: items.get("x", "item_retrieve_invalid_item_id"), "item_retrieve_invalid_item_id"),
        (lambda items: items.delete("x"), "item_delete_invalid_item_id"),
    ],
)
def test_what_cannot_be_done_with_items(action, code):
    items = conversation("a", "b")
    with pytest.raises(WireError) as error:
        action(items)
    assert error.value.code == code and ids(items) == ["a", "b"]


def test_old_sound_is_let_go(monkeypatch):
    from speechgpt2.server import conversation as module

    monkeypatch.setattr(module, "KEPT_SOUND", 100)
    items = conversation("a", "b")
    first, second = items.get("a", "").parts[0], items.get("b", "").parts[0]
    items.hear(first, b"x" * 80)
    items.hear(second, b"y" * 80)
    assert not first.sound and len(second.sound) == 80
    assert items.cut(items.get("b", ""), 1) == 1 and len(second.sound) == 48
    items.hear(first, b"z" * 52)
    assert len(first.sound) == 52 and len(second.sound) == 48
    assert items.cut(items.get("a", ""), 5) == 2 and not first.text  # 132 bytes were heard in all
