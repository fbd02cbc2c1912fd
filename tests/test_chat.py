"""Codec and language model together, on a codec that only counts and a language model that follows a script."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from speechgpt2.chat import Conversation, SpeechGPT
from speechgpt2.codec.model import Codec
from speechgpt2.dsp.delivery import deliver
from speechgpt2.errors import UserError
from speechgpt2.fixed_words import CONSENT, NOT_UNDERSTOOD
from speechgpt2.lm.config import SamplingConfig
from speechgpt2.lm.model import SampledPatches, SpeechLM
from speechgpt2.lm.prompt import TRANSCRIBE
from speechgpt2.lm.sampling import SamplingParams
from speechgpt2.lm.segments import concat
from speechgpt2.lm.state import at_position
from speechgpt2.style import named_style
from speechgpt2.types import AudioDelta, Patches, ReplyDone, Speech, Text, TextDelta, Tool, ToolCall, Transcript, Turn
from tests.lm.tiny import tiny_lm

FRAME = 960


class CountingCodec:
    """A frame's code is how loud it is; a decoded frame holds its running number, so that lost state would be heard."""

    config = SimpleNamespace(quantizer=SimpleNamespace(codebooks=3, size=1024))

    def encode(self, pcm):
        loud = pcm.view(1, -1, FRAME).abs().amax(-1)
        return (loud * 1000).long()[..., None].expand(-1, -1, 3)

    def init_decoder_state(self, batch, in_place):
        return torch.zeros(batch)

    def decode(self, codes, state):
        frames = state[:, None] + torch.arange(codes.shape[1])
        return frames.repeat_interleave(FRAME, 1), state + codes.shape[1]


class ScriptedLM:
    """A language model that says what it is told; all else, its state above all, is the real one's.

    What it was shown is in `seen`, in order. It is as certain of each token as `log_prob` says.
    """

    draft_head, log_prob = None, 0.0

    def __init__(self, lm: SpeechLM, *replies: Patches):
        self.lm, self.replies, self.reply = lm, list(replies), iter(())
        self.seen: list[Patches] = []
        self.prompt, self.config, self.device, self.init_state = lm.prompt, lm.config, lm.device, lm.init_state

    def prefill(self, patches, state, lengths=None):
        self.seen.append(patches)
        if lengths is None and self.replies:  # what is read before a reply, not a patch of it
            self.reply = zip(*(leaf.split(1, dim=1) for leaf in self.replies.pop(0)), strict=True)
        return self.lm.prefill(patches, state, lengths)

    def sample(self, hidden, state, sampling, allowed=None):
        return SampledPatches(Patches(*next(self.reply)), torch.tensor([self.log_prob]))

    @property
    def read(self) -> Patches:
        return concat(*self.seen)


@pytest.fixture(scope="module")
def released():
    return tiny_lm()


@pytest.fixture(scope="module")
def drafting():
    return tiny_lm(chain_of_modality=True)


def speech(frames: int) -> np.ndarray:
    return np.full(frames * FRAME, 0.25, np.float32)


def spoken(prompt, text: str, frames: int = 4):
    return prompt.align_speech(torch.arange(frames * 3).view(frames, 3), text=text)


def same(a: Patches, b: Patches) -> bool:
    return torch.equal(a.text, b.text) and torch.equal(a.codes, b.codes)


def test_spoken_reply_with_draft(drafting):
    prompt = drafting.prompt
    said = spoken(prompt, "Hello there")
    reply = prompt.reply("Hello there", said, transcript="what is it")
    lm = ScriptedLM(drafting, reply)
    answer = SpeechGPT(CountingCodec(), lm).chat([Turn.user(speech=speech(5))])
    assert (answer.text, answer.transcript, answer.reason) == ("Hello there", "what is it", "stop")
    assert answer.codes.tolist() == said.codes.tolist()
    frames = len(said.codes)
    np.testing.assert_array_equal(answer.pcm, np.repeat(np.arange(frames, dtype=np.float32), FRAME))
    user = prompt.user_speech(torch.full((5, 3), 250))
    assert same(lm.read, concat(prompt.system_prompt("s2s"), user, reply))


def test_events_stream_in_order(drafting):
    prompt = drafting.prompt
    lm = ScriptedLM(drafting, prompt.reply("Hello", spoken(prompt, "Hello"), transcript="what"))
    events = SpeechGPT(CountingCodec(), lm).chat([Turn.user(speech=speech(5))], stream=True)
    assert next(events) == Transcript("what")
    shown = len(lm.seen)
    assert isinstance(next(events), TextDelta) and len(lm.seen) <= shown + 2
    kinds = [type(event) for event in events]
    assert kinds == [*[TextDelta] * kinds.count(TextDelta), *[AudioDelta] * 3, ReplyDone]


@pytest.mark.parametrize("transcript", ["what is it", None])
def test_mute_reply_is_spoken_after_all(drafting, transcript):
    prompt = drafting.prompt
    said = spoken(prompt, "Hello there")
    mute = prompt.reply("Hello there", transcript=transcript)
    whole = prompt.reply("Hello there", said, transcript)
    written = mute.text.shape[1] - prompt.turn_end(speaking=False).text.shape[1]
    rest = Patches(*(part[:, written + 1 :] for part in whole))
    lm = ScriptedLM(drafting, mute, rest)
    talk = SpeechGPT(CountingCodec(), lm).conversation("s2s")
    answer = talk.ask(
        Turn.user("is it" if transcript is None else None, speech=None if transcript is None else speech(5))
    )
    assert (answer.text, answer.transcript, answer.reason) == ("Hello there", transcript, "stop")
    assert answer.codes.tolist() == said.codes.tolist()
    others, _ = drafting.prefill(concat(lm.seen[0], whole), drafting.init_state(1, 400))
    assert (
        talk.state.position.item() == lm.seen[0].text.shape[1] + whole.text.shape[1]
        and talk.state.speech_depth.item() == 0
    )
    state = at_position(talk.state, talk.state.position - 1)  # what it has in memory is the whole answer, and no other
    mine, _ = drafting.prefill(Patches(*(part[:, -1:] for part in whole)), state)
    torch.testing.assert_close(mine, others, atol=1e-5, rtol=1e-4)


def test_wordless_reply_stays_mute(drafting):
    prompt = drafting.prompt
    lm = ScriptedLM(drafting, prompt.reply("", transcript="what is it"))
    answer = SpeechGPT(CountingCodec(), lm).chat([Turn.user(speech=speech(5))])
    assert (answer.text, answer.transcript, answer.reason, len(answer.pcm)) == ("", "what is it", "stop", 0)


def test_released_written_reply(released):
    prompt = released.prompt
    lm = ScriptedLM(released, prompt.reply("Hello there"))
    answer = SpeechGPT(CountingCodec(), lm).chat([Turn.user("Hello")])
    assert (answer.text, answer.transcript) == ("Hello there", None)
    assert answer.pcm.shape == (0,) and answer.pcm.dtype == np.float32 and answer.codes.shape == (0, 3)
    assert same(lm.seen[0], concat(prompt.system_prompt("t2t"), prompt.user_text("Hello")))


def test_released_speech_text_is_its_text_row(released):
    lm = ScriptedLM(released, released.prompt.reply("", spoken(released.prompt, "你好，hello")))
    answer = SpeechGPT(CountingCodec(), lm).chat([Turn.user(speech=speech(1))])
    assert answer.text == "你好，hello" and len(answer.pcm) == len(answer.codes) * FRAME > 0


def test_history_greeting_and_system_enter_the_context(released):
    prompt = released.prompt
    lm = ScriptedLM(released, prompt.reply("Hello"))
    greeting = Speech(codes=np.ones((4, 3), np.int64), text="你好")
    turns = [
        Turn("system", (Text("Be brief."),)),
        Turn.user("what"),
        Turn.assistant("Hello there"),
        Turn.user("is"),
        Turn("assistant", (Speech(codes=np.zeros((3, 3), np.int64), text="it"),)),
        Turn.user(speech=speech(2)),
    ]
    SpeechGPT(CountingCodec(), lm).chat(turns, mode="s2t", greeting=greeting)
    wanted = concat(
        prompt.system_prompt("s2t", prompt.align_speech(torch.ones(4, 3, dtype=torch.int64), text="你好"), "Be brief."),
        prompt.user_text("what"),
        prompt.reply("Hello there"),
        prompt.user_text("is"),
        prompt.reply("it", prompt.align_speech(torch.zeros(3, 3, dtype=torch.int64), text="it")),
        prompt.user_speech(torch.full((2, 3), 250)),
    )
    assert same(lm.seen[0], wanted)


def test_draft_history_keeps_the_transcript(drafting):
    prompt = drafting.prompt
    lm = ScriptedLM(drafting, prompt.reply("Hello"))
    said = Turn("user", (Speech(pcm=speech(2), text="what is it"),))
    SpeechGPT(CountingCodec(), lm).chat([said, Turn.assistant("Hello"), Turn.user("is")])
    user = prompt.user_speech(torch.full((2, 3), 250))
    wanted = concat(
        prompt.system_prompt("t2t"), user, prompt.reply("Hello", transcript="what is it"), prompt.user_text("is")
    )
    assert same(lm.seen[0], wanted)


def test_conversation_prefills_only_new_turns(released):
    prompt = released.prompt
    replies = [prompt.reply("Hello"), prompt.reply("there")]
    lm = ScriptedLM(released, *replies)
    talk = SpeechGPT(CountingCodec(), lm).conversation("t2t")
    assert [talk.ask(Turn.user(text)).text for text in ("what", "is")] == ["Hello", "there"]
    turns = [prompt.user_text("what"), replies[0], prompt.user_text("is"), replies[1]]
    assert same(lm.read, concat(prompt.system_prompt("t2t"), *turns))
    assert talk.state.position.item() == lm.read.text.shape[1]


@pytest.mark.parametrize("stop_at", [TextDelta, AudioDelta])
def test_interrupted_reply_is_closed_before_the_next_turn(drafting, stop_at):
    prompt = drafting.prompt
    reply = prompt.reply("Hello there", spoken(prompt, "Hello there"))
    answer = prompt.reply("it", spoken(prompt, "it"))
    lm = ScriptedLM(drafting, reply, answer)
    talk = SpeechGPT(CountingCodec(), lm).conversation("t2s")
    events = talk.ask(Turn.user("what"), stream=True)
    while not isinstance(next(events), stop_at):
        pass
    events.close()
    said = lm.read.text.shape[1]
    assert talk.ask(Turn.user("is")).text == "it"
    speaking = stop_at is AudioDelta
    rest = concat(prompt.turn_end(speaking), prompt.user_text("is"), answer)
    read = lm.read
    assert same(Patches(read.text[:, said:], read.codes[:, said:]), rest)
    assert talk.state.speech_depth.item() == 0


def test_reply_at_max_patches_is_closed(released):
    prompt = released.prompt
    lm = ScriptedLM(released, prompt.text_patches([50] * 20), prompt.reply("it"))
    talk = SpeechGPT(CountingCodec(), lm).conversation("t2t", max_patches=6)
    assert talk.ask(Turn.user("what")).reason == "length"
    assert talk.ask(Turn.user("is")).reason == "stop"
    assert same(lm.seen[7], concat(prompt.turn_end(speaking=False), prompt.user_text("is")))


def test_text_reply_stops_where_it_begins_to_speak(drafting):
    prompt = drafting.prompt
    lm = ScriptedLM(drafting, prompt.reply("Hello", spoken(prompt, "Hello")), prompt.reply("it"))
    talk = SpeechGPT(CountingCodec(), lm).conversation("t2t")
    reply = talk.ask(Turn.user("what"))
    assert (reply.text, reply.reason, len(reply.pcm)) == ("Hello", "stop", 0)
    said = lm.read.text.shape[1]
    assert talk.ask(Turn.user("is")).text == "it"
    assert same(
        Patches(*(part[:, said:] for part in lm.read)),
        concat(prompt.turn_end(True), prompt.user_text("is"), prompt.reply("it")),
    )


def test_unanswered_question_is_closed(released):
    prompt = released.prompt
    lm = ScriptedLM(released, prompt.reply("it"))
    talk = SpeechGPT(CountingCodec(), lm).conversation("t2t")
    talk.ask(Turn.user("what"), stream=True)  # nobody ever looks
    talk.ask(Turn.user("is"))
    turns = [prompt.user_text("what"), prompt.turn_end(speaking=False), prompt.user_text("is")]
    assert same(lm.seen[0], concat(prompt.system_prompt("t2t"), *turns))


def test_tool_call_and_result():
    lm = tiny_lm(tools=True)
    prompt, tool, call = lm.prompt, Tool("weather", "", {}), ToolCall("weather", "{}")
    calling = '<tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call>'
    result = Turn("tool", (Text("25"),))
    lm = ScriptedLM(lm, prompt.reply(calling), prompt.reply("It's 25."), prompt.reply("It's 25."))
    model = SpeechGPT(CountingCodec(), lm)
    talk = model.conversation("t2t", tools=[tool])
    reply = talk.ask(Turn.user("what"))
    assert (reply.text, reply.calls, reply.reason) == ("", (call,), "stop")
    assert talk.ask(result).text == "It's 25."
    answered = prompt.user_text("<tool_response>\n25\n</tool_response>")
    whole = [prompt.system_prompt("t2t", tools=[tool]), prompt.user_text("what"), prompt.reply(calling), answered]
    assert same(lm.read, concat(*whole, prompt.reply("It's 25.")))
    lm.seen.clear()
    assert model.chat([Turn.user("what"), Turn("assistant", (call,)), result], tools=[tool]).calls == ()
    assert same(lm.seen[0], concat(*whole))
    with pytest.raises(UserError, match="one segment"):
        talk.add(Turn("user", (call,)))


def test_reading_aloud(drafting):
    prompt = drafting.prompt
    said = spoken(prompt, "Hello there")
    speech_only = concat(prompt.speech_patches(said.codes, said.tokens), prompt.turn_end(speaking=True))
    lm = ScriptedLM(drafting, speech_only)
    reply = SpeechGPT(CountingCodec(), lm).say("Hello there")
    assert reply.text == "Hello there" and reply.codes.tolist() == said.codes.tolist()
    assert same(lm.seen[0], prompt.tts_prompt("Hello there."))


def test_transcribe_stops_at_the_transcript(drafting):
    prompt = drafting.prompt
    lm = ScriptedLM(drafting, prompt.reply("never read", transcript="what is it"))
    assert SpeechGPT(CountingCodec(), lm).transcribe(speech(3)) == "what is it"
    assert len(lm.seen) == 1 + len(prompt.encode("what is it")) + 1
    assert same(lm.seen[0], concat(prompt.system_prompt("s2t"), prompt.user_speech(torch.full((3, 3), 250))))


def test_a_model_without_chain_of_modality_transcribes_on_request():
    model = tiny_lm(transcribes=True)
    prompt = model.prompt
    lm = ScriptedLM(model, prompt.reply("what is it"))
    assert SpeechGPT(CountingCodec(), lm).transcribe(speech(3)) == "what is it"
    question = prompt.user_speech(torch.full((3, 3), 250))
    assert same(lm.seen[0], concat(prompt.system_prompt("s2t", system=TRANSCRIBE), question))


def test_released_models_refuse_say_and_transcribe(released):
    model = SpeechGPT(CountingCodec(), ScriptedLM(released))
    with pytest.raises(UserError, match="cannot read a given text aloud"):
        model.say("Hello")
    with pytest.raises(UserError, match="cannot transcribe speech"):
        model.transcribe(speech(1))


def test_draft_text_is_greedy(drafting):
    model = SpeechGPT(CountingCodec(), drafting)
    texts = {
        model.chat([Turn.user("what is it")], sampling=SamplingParams.for_batch(1, seed=s), max_patches=9).text
        for s in range(4)
    }
    assert len(texts) == 1


def test_mini_answers_reproducibly(released):
    model = SpeechGPT(CountingCodec(), released)
    turns = [Turn.user("what is it")]
    runs = [model.chat(turns, sampling=SamplingParams.for_batch(1, seed=seed), max_patches=30) for seed in (1, 1, 2)]
    assert runs[0].text == runs[1].text and np.array_equal(runs[0].codes, runs[1].codes)
    assert runs[0].text != runs[2].text


def test_model_is_sampled_by_default_as_its_configuration_says(released):
    model, turns, config = SpeechGPT(CountingCodec(), released), [Turn.user("what is it")], released.config
    greedy = model.chat(turns, sampling=SamplingParams.greedy(), max_patches=20)
    released.config = replace(config, sampling=SamplingConfig(temperature=0.0))
    try:
        assert model.chat(turns, max_patches=20).text == greedy.text
    finally:
        released.config = config
    assert model.chat(turns, max_patches=20).text != greedy.text


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "nothing to answer"),
        ([Turn.user("a"), Turn.assistant("b")], "the last turn must be the user's"),
        ([Turn.user("a"), Turn("system", (Text("b"),)), Turn.user("c")], "can only be the first"),
        ([Turn("user", (Text("a"), Text("b")))], "one segment"),
        ([Turn.user(speech=np.zeros((2, 960), np.float32))], "a row of finite samples"),
        ([Turn.user(speech=np.zeros(0, np.float32))], "must hold samples"),
        ([Turn("user", (Speech(codes=np.full((3, 3), 1024)),))], "codes must lie in 0…1023"),
        ([Turn("user", (Speech(codes=np.zeros((3, 2))),))], "must have 3 codebooks"),
    ],
)
def test_invalid_turns_are_refused(released, turns, message):
    with pytest.raises(UserError, match=message):
        SpeechGPT(CountingCodec(), ScriptedLM(released)).chat(turns)


def test_mismatched_codes_are_refused(released):
    codec = CountingCodec()
    codec.config = SimpleNamespace(quantizer=SimpleNamespace(codebooks=8, size=2048))
    with pytest.raises(UserError, match="8 codebooks of 2048 codes"):
        SpeechGPT(codec, released)


def test_conversation_grows_its_cache(released, monkeypatch):
    monkeypatch.setattr("speechgpt2.chat_conversation.GROWTH", 16)
    lm = ScriptedLM(released, *[released.prompt.reply("Hello there") for _ in range(3)])
    talk: Conversation = SpeechGPT(CountingCodec(), lm).conversation("t2t", max_patches=20)
    for _ in range(3):
        assert talk.ask(Turn.user("what is the weather like")).text == "Hello there"
    assert talk.state.stack.capacity > 60


def test_released_layouts_together():
    """A spoken question through the real codec and model; what is streamed is what decoding at once gives."""
    golden = Path(__file__).parent / "golden"
    codec = Codec.from_pretrained(golden / "codec" / "codec.pkl", config=golden / "codec" / "config.yaml")
    model = SpeechGPT(codec, SpeechLM.from_pretrained(golden / "lm", torch.float32, patch_heads=4))
    start = [model.lm.prompt.special_ids.speech_start, 50]  # this model says little of itself
    talk = model.conversation("s2s", max_patches=25, sampling=SamplingParams.greedy())
    talk.add(Turn.user(speech=np.random.default_rng(0).normal(0, 0.1, 20_000).astype(np.float32)))
    talk._pending.append(model.lm.prompt.text_patches(start))
    reply = talk.collect(talk.reply(user_spoke=True))
    assert len(reply.codes) >= 3 and len(reply.pcm) == len(reply.codes) * FRAME
    whole = codec.decode(torch.from_numpy(reply.codes)[None])[0].numpy()
    np.testing.assert_allclose(reply.pcm, whole, atol=1e-5)


# styles


def transcript_of(prompt, text):
    """The patches of a transcript, with which a reply begins."""
    return prompt.text_patches([*prompt.encode(text), prompt.special_ids.transcript_end])


def after_text(prompt, text, said, transcript=None):
    """The patches of a reply after its written part and the start of its speech."""
    whole, prefix = prompt.reply(text, said, transcript), prompt.tts_prefix(text, transcript)
    return Patches(*(part[:, prefix.text.shape[1] :] for part in whole))


SLOWER = named_style("slower")


def test_conversation_speaks_in_a_style_at_a_speed(drafting):
    prompt = drafting.prompt
    reply = prompt.reply("Hello", spoken(prompt, "Hello"), transcript="what")
    codec, lm = CountingCodec(), ScriptedLM(drafting, reply, reply)
    usual = SpeechGPT(codec, lm).chat([Turn.user(speech=speech(5))]).pcm
    answer = SpeechGPT(codec, lm).chat([Turn.user(speech=speech(5))], style=SLOWER, speed=2.0)
    np.testing.assert_array_equal(answer.pcm, deliver(usual, SLOWER.faster(2.0)))


def test_spoken_request_has_the_last_answer_said_again(drafting):
    prompt = drafting.prompt
    said = spoken(prompt, "Hello there")
    first = prompt.reply("Hello there", said, transcript="what is it")
    again = after_text(prompt, "Hello there", said, "say it slower")
    third = prompt.reply("Hello there", said, transcript="what is it")
    lm = ScriptedLM(drafting, first, transcript_of(prompt, "say it slower"), again, third)
    talk = SpeechGPT(CountingCodec(), lm).conversation("s2s")
    usual = talk.ask(Turn.user(speech=speech(5)))
    answer = talk.ask(Turn.user(speech=speech(5)))
    assert (answer.text, answer.transcript, answer.reason) == ("Hello there", "say it slower", "stop")
    np.testing.assert_array_equal(answer.pcm, deliver(usual.pcm, SLOWER))
    np.testing.assert_array_equal(talk.ask(Turn.user(speech=speech(5))).pcm, usual.pcm)


@pytest.mark.parametrize("mode", ["s2s", "s2t"])
def test_question_that_is_not_understood(mode):
    sure = tiny_lm(chain_of_modality=True, min_confidence=-0.5)
    prompt, text = sure.prompt, NOT_UNDERSTOOD["en"]
    said = spoken(prompt, text) if mode == "s2s" else None
    rest = after_text(prompt, text, said, "what is it") if said else prompt.turn_end(speaking=False)
    lm = ScriptedLM(sure, transcript_of(prompt, "what is it"), rest)
    lm.log_prob = -0.6
    answer = SpeechGPT(CountingCodec(), lm).conversation(mode).ask(Turn.user(speech=speech(5)))
    assert (answer.text, answer.transcript, answer.reason) == (text, "what is it", "stop")
    assert bool(len(answer.codes)) == (mode == "s2s")


def test_typed_request_that_lasts(drafting):
    prompt = drafting.prompt
    said = spoken(prompt, "Hello there")
    answers = [after_text(prompt, CONSENT["en"], said), prompt.reply("Hello there", said)]
    lm = ScriptedLM(drafting, *answers)
    talk = SpeechGPT(CountingCodec(), lm).conversation("t2s")
    assert talk.ask(Turn.user("Please speak slower.")).text == CONSENT["en"]
    answer = talk.ask(Turn.user("Whisper: what is it?"))
    assert answer.text == "Hello there" and "Whisper" not in prompt.tokenizer.decode(lm.read.text[0].tolist())
    assert talk.style.style == SLOWER and talk.style.delivery.rate == 1.0


def test_model_that_follows_instructions_gets_the_users_words():
    lm = tiny_lm(follows_instructions=True)
    prompt = lm.prompt
    script = ScriptedLM(lm, prompt.reply("", spoken(prompt, "Hello there")))
    talk = SpeechGPT(CountingCodec(), script).conversation("t2s", style=named_style("whisper"), speed=0.5)
    answer = talk.ask(Turn.user("Say it slower."))
    read = prompt.tokenizer.decode(script.read.text[0].tolist())
    assert "in speech. Whisper.\n\n\n" in read and "Say it slower." in read
    assert len(answer.pcm) == 2 * len(answer.codes) * FRAME
