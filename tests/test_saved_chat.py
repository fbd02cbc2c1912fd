"""Saved conversations of `chat`: loaded ones go on as if nothing had happened, and replies can be generated again."""

import numpy as np
import pytest
import torch

from speechgpt2.chat import SpeechGPT
from speechgpt2.errors import UserError
from speechgpt2.lm.sampling import SamplingParams
from speechgpt2.saved_chat import ConversationWriter, replay
from speechgpt2.sessions.entries import Resumed
from speechgpt2.sessions.session_file import read_session
from speechgpt2.sessions.store import SessionFolder
from speechgpt2.style import NORMAL, named_style
from speechgpt2.types import Speech, Text, Tool, ToolCall, Turn
from tests.engine.tiny import BabblingLM, noise, tiny_codec, tiny_lm

TOOL = Tool("weather", "The weather in a city.", {"type": "object", "properties": {"city": {"type": "string"}}})


def tiny(**options):
    return SpeechGPT(tiny_codec(), tiny_lm(BabblingLM, **options))


def begin(model, mode="s2s", **options):
    return model.conversation(mode, max_patches=20, sampling=SamplingParams.for_batch(1, seed=4), **options)


def equal(a, b):
    """Whether two replies are equal, bit by bit."""
    return (
        (a.text, a.reason) == (b.text, b.reason) and np.array_equal(a.codes, b.codes) and np.array_equal(a.pcm, b.pcm)
    )


@pytest.mark.parametrize("options", [{}, {"chain_of_modality": True}, {"tools": True}])
def test_loaded_conversation_goes_on(tmp_path, options):
    model = tiny(**options)
    talk = begin(model, tools=[TOOL] if options.get("tools") else (), system="Hello there")
    talk.ask(Turn.user(speech=noise(0.5)))
    talk.add(Turn.user("Hello"))
    talk.add(Turn("assistant", (ToolCall("weather", "{}"),)))
    talk.ask(Turn("tool", (Text("25 degrees"),)))
    stream = talk.ask(Turn.user(speech=noise(0.4, 1)), stream=True)
    next(stream)
    stream.close()  # interrupted
    talk.add(Turn.user("what is"))
    path = tmp_path / "talk.jsonl"
    talk.save(path)
    twin = tiny(**options).load_conversation(path)
    assert twin.tools == talk.tools and twin.log.length == talk.log.length
    for question in (Turn.user(speech=noise(0.6, 2)), Turn.user("Hello there")):
        assert equal(talk.ask(question), twin.ask(question))
    assert torch.equal(talk.state.position, twin.state.position)
    for ours, theirs in zip(talk.state.stack.layers, twin.state.stack.layers, strict=True):
        count = int(talk.state.position)
        assert all(torch.equal(a[:, :, :count], b[:, :, :count]) for a, b in zip(ours, theirs, strict=True))


def test_conversation_is_saved_turn_by_turn(tmp_path):
    model, store = tiny(), SessionFolder(tmp_path)
    talk = begin(model)
    writer = ConversationWriter(talk, store.create(talk.header("sess_1", "tiny")))
    for number in range(2):
        talk.ask(Turn.user(speech=noise(0.4, number)))
        writer.write_new()
        assert len(store.load("sess_1").turns) == 2 * number + 2
    writer.close()
    file, saved = store.resume("sess_1")
    file.write(Resumed(0.0))
    twin = tiny().load_conversation(saved, SamplingParams.greedy())
    replies = [each.ask(Turn.user("Hello")) for each in (twin, talk)]
    assert not equal(*replies)  # greedy now
    ConversationWriter(twin, file, saved).close()
    saved = store.load("sess_1")
    assert len(saved.turns) == 6 and saved.settings["temperature"] == 0
    assert [reply.status for reply in replay(tiny(), tmp_path / "sess_1.jsonl")] == ["same"] * 3


@pytest.mark.parametrize("chain_of_modality", [True, False])
def test_given_sentence_is_kept(tmp_path, chain_of_modality):
    """One model reads it aloud, the other writes it."""
    talk, path = begin(tiny(chain_of_modality=chain_of_modality), "t2s"), tmp_path / "talk.jsonl"
    talk.ask(Turn.user("Hello"))
    said = talk.collect(talk.say("Hello there"))
    assert said.text == "Hello there" and bool(len(said.pcm)) == chain_of_modality
    talk.ask(Turn.user("Hello"))
    talk.save(path)
    again = list(replay(tiny(chain_of_modality=chain_of_modality), path))
    assert [reply.status for reply in again] == ["same"] * (2 + chain_of_modality)
    twin = tiny(chain_of_modality=chain_of_modality).load_conversation(path)
    assert equal(*(each.ask(Turn.user("Hello")) for each in (talk, twin)))


def test_replay_compares_replies(tmp_path):
    model = tiny(chain_of_modality=True)
    talk = begin(model)
    for number in range(2):
        talk.ask(Turn.user(speech=noise(0.4, number)))
    stream = talk.ask(Turn.user(speech=noise(0.4, 3)), stream=True)
    for _ in range(4):
        next(stream)
    stream.close()
    path = tmp_path / "talk.jsonl"
    talk.save(path)
    assert [reply.status for reply in replay(tiny(chain_of_modality=True), path)] == ["same"] * 3
    other = begin(model)
    other.sampling = SamplingParams.for_batch(1, seed=5)
    for number in range(2):
        other.ask(Turn.user(speech=noise(0.4, number)))
    other.sampling = talk.sampling  # what the file says is not what was done
    other.save(path)
    assert [reply.status for reply in replay(tiny(chain_of_modality=True), path)] == ["different"] * 2


def test_greeting_stays(tmp_path):
    model = tiny()
    talk = begin(model, greeting=Speech(pcm=noise(0.5, 8), text="Hello there"))
    path = tmp_path / "talk.jsonl"
    talk.save(path)
    assert equal(tiny().load_conversation(path).ask(Turn.user("Hello")), talk.ask(Turn.user("Hello")))
    assert read_session(path).system.patches.codes.min() < 1024


def test_other_models_and_sessions_are_refused(tmp_path):
    path = tmp_path / "talk.jsonl"
    begin(tiny()).save(path)
    with pytest.raises(UserError, match="a different language model"):
        tiny(chain_of_modality=True).load_conversation(path)
    with pytest.raises(UserError, match="No such file"):
        tiny().load_conversation(tmp_path / "none.jsonl")


def test_style_speed_and_requests_are_kept(tmp_path):
    slower, path = named_style("slower"), tmp_path / "talk.jsonl"
    model = tiny(chain_of_modality=True)
    talk = begin(model, "t2s", style=named_style("louder"), speed=2.0)
    talk.ask(Turn.user("Hello"))
    talk.ask(Turn.user("Please speak slower."))
    lasting = talk.style.style
    assert lasting == slower.over(named_style("louder"))
    stream = talk.ask(Turn.user("Hello there"), stream=True)
    next(stream)
    stream.close()  # interrupted
    talk.add(Turn.user("Say that again, softer"))
    talk.save(path)
    twin = tiny(chain_of_modality=True).load_conversation(path)
    assert (twin.style.style, twin.style.speed) == (lasting, 2.0)
    assert twin.style.last_answer == talk.style.last_answer
    for each in (talk, twin):
        each.after = [each.collect(each.reply(user_spoke=False)), each.ask(Turn.user("Hello"))]
    assert all(map(equal, talk.after, twin.after))
    talk.save(path)
    assert [reply.status for reply in replay(tiny(chain_of_modality=True), path)] == ["same"] * 5


def test_request_of_one_turn_is_forgotten_after_it(tmp_path):
    talk, path = begin(tiny(chain_of_modality=True), "t2s"), tmp_path / "talk.jsonl"
    talk.ask(Turn.user("Slowly: what is the weather?"))
    talk.save(path)
    twin = tiny(chain_of_modality=True).load_conversation(path)
    assert twin.style.style == NORMAL
    assert equal(*(each.ask(Turn.user("Hello")) for each in (talk, twin)))
