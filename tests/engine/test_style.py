"""Styles in the engine: speech at another rate, and a memory that counts what was played."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from speechgpt2.dsp.delivery import deliver
from speechgpt2.duplex.protocol import ReplyOptions
from speechgpt2.fixed_words import CONSENT, NOT_UNDERSTOOD
from speechgpt2.style import NORMAL, Style, named_style
from speechgpt2.types import SAMPLE_RATE, Interrupted, ReplyDone, Text, TextDelta, Transcript, Turn
from tests.engine.results import audio_of, context_of, events, same
from tests.engine.test_turns import WORDS, agrees, random_codes, scripted
from tests.engine.tiny import PATCH, SHORT, ScriptedLM, answer, noise, run, say, talk, tiny_engine, tiny_lm


@cache
def answered(settings, options=None):
    """A session that has answered one turn, and the audio of its answer."""
    engine = tiny_engine()
    session = engine.open(settings)
    return session, audio_of(answer(engine, session, noise(0.4), options))


@pytest.mark.parametrize("style", [Style(rate=0.5), named_style("whisper"), named_style("happy")])
def test_reply_is_delivered_in_the_style(style):
    plain, usual = answered(SHORT)
    session, pcm = answered(replace(SHORT, style=style))
    assert np.array_equal(pcm, deliver(usual, style))
    assert same(session, plain)


def test_speed_multiplies_the_rate_of_the_style():
    usual = answered(SHORT)[1]
    assert len(answered(replace(SHORT, style=Style(rate=0.8), speed=1.5))[1]) == round(len(usual) / 1.2)


def test_reply_may_have_a_style_of_its_own():
    usual, pcm = (
        answered(replace(SHORT, speed=2.0), ReplyOptions(speed=speed, style=NORMAL))[1] for speed in (1.0, 2.0)
    )
    assert len(pcm) == round(len(usual) / 2)


@pytest.mark.parametrize("rate", [0.5, 0.8, 1.25, 2.0])
@pytest.mark.parametrize("played", [1, 3])
def test_interrupted_reply_keeps_what_was_played_at_its_rate(rate, played):
    codes = random_codes(24)  # more than is generated ahead
    engine, named = scripted(WORDS, codes)
    session = engine.open(replace(SHORT, speed=rate))
    say(session, noise(0.4))
    session.respond()
    found = []
    run(engine, until=lambda: found.extend(events(session)) or len(audio_of(found)) >= 4 * PATCH / rate)
    before = session.slot.history.context.spans[0].stop
    samples = int((played * PATCH + 700) / rate)
    session.interrupt(samples)
    assert events(session) == [Interrupted(samples), ReplyDone("interrupted")]
    engine.step()
    memory, c = context_of(session), engine.core.runner.lm.config
    speech = memory.codes[0, before:][memory.codes[0, before:, 0, 0] != c.no_speech]
    assert torch.equal(speech, codes[:played])
    tokens = memory.text[0, before:].tolist()
    assert [token in tokens for token in named] == [place + 1 < played for place in range(len(named))]
    assert agrees(engine, session)


@pytest.mark.parametrize("rate", [0.5, 2.0])
def test_complete_reply_is_truncated_at_its_rate(rate):
    """Also after the settings have changed: each reply has the rate at which it was spoken."""
    codes = random_codes(8)
    engine, _ = scripted(WORDS, codes)
    session = engine.open(replace(SHORT, speed=rate))
    say(session, noise(0.4))
    reply = session.respond()
    length = len(audio_of(talk(engine, [session])[session]))
    session.configure(SHORT)
    run(engine)
    whole = context_of(session).text.shape[1]
    session.truncate(reply, length + engine.core._codec_delay)
    run(engine)
    assert context_of(session).text.shape[1] == whole  # all of it was played
    session.truncate(reply, int(length / 2))
    run(engine)
    span = session.slot.history.context.find(reply)
    assert session.slot.history.speech_length(span) == 4


@pytest.mark.parametrize("rate", [0.5, 2.0])
def test_generation_is_paced_by_the_time_of_playback(rate):
    engine, _ = scripted(WORDS, random_codes(40))
    session = engine.open(replace(SHORT, speed=rate, max_patches=60))
    say(session, noise(0.4))
    session.respond()
    while (wait := engine.step()) is not None and (wait == 0.0 or not session.event_queue.reply_samples):
        engine.clock.pass_by(wait)
    seconds = session.event_queue.reply_samples / SAMPLE_RATE
    assert engine.config.buffer_seconds - 0.12 <= seconds <= engine.config.buffer_seconds + 0.12 / rate + 0.05


def test_model_that_follows_instructions_gets_the_style_as_words():
    engine = tiny_engine(tiny_lm(follows_instructions=True))
    session = engine.open(replace(SHORT, style=named_style("whisper")))
    session.add_turn(Turn.user("Hello"))
    run(engine)
    history = session.slot.history
    assert history.system.instructions.rstrip().endswith("in speech. Whisper.")
    session.respond(ReplyOptions(style=named_style("faster"), instructions="你好。"))
    run(engine, until=lambda: session.slot.generation is not None)
    assert history.system.instructions == "你好。 请说得快一些。"
    assert history.last.rate == 1.0


# requests in words


def styled_engine(*replies, **options):
    """An engine whose model writes (transcript, answer or None) for each reply, and says eight patches."""
    lm = tiny_lm(ScriptedLM, chain_of_modality=True, **options)
    ids, encode = lm.prompt.special_ids, lm.prompt.encode
    lm.script = []
    for number, (transcript, written) in enumerate(replies):
        if transcript is not None:
            lm.script += [(token, None) for token in [*encode(transcript), ids.transcript_end]]
        if written is not None:
            lm.script += [(token, None) for token in [*encode(written), ids.speech_start]]
        lm.script += [(ids.filler, codes) for codes in random_codes(8, number)]
        lm.script += [(token, None) for token in [ids.speech_end, *encode(lm.prompt.template.turn_end), ids.eos]]
    return tiny_engine(lm)


def ask(engine, session, text=None):
    """Ask a question, spoken if it has no text: the transcript, the answer and the rate of the reply."""
    if text is None:
        say(session, noise(0.4))
    else:
        session.add_turn(Turn.user(text))
    number = session.respond()
    found = talk(engine, [session])[session]
    transcript = next((event.text for event in found if isinstance(event, Transcript)), None)
    span = session.slot.history.context.find(number)
    assert len(audio_of(found)) == round(8 * PATCH / span.rate)
    assert agrees(engine, session)
    return transcript, text_of(found), span.rate


def text_of(found):
    return "".join(event.text for event in found if isinstance(event, TextDelta)).strip()


LONG = replace(SHORT, max_patches=90)
SLOWER = named_style("slower").rate


def test_spoken_request_has_the_last_answer_said_again():
    engine = styled_engine(("what is the weather", "It's 25 degrees."), ("say it slower", None), ("what", "Hello"))
    session = engine.open(LONG)
    assert ask(engine, session) == ("what is the weather", "It's 25 degrees.", 1.0)
    assert ask(engine, session) == ("say it slower", "It's 25 degrees.", SLOWER)
    assert ask(engine, session) == ("what", "Hello", 1.0)


def test_spoken_request_that_lasts_is_consented_to_and_kept():
    engine = styled_engine(("speak slower", None), ("what", "Hello"), ("speak normally", None), ("what", "Hello"))
    session = engine.open(LONG)
    assert ask(engine, session) == ("speak slower", CONSENT["en"], SLOWER)
    assert ask(engine, session) == ("what", "Hello", SLOWER)
    assert ask(engine, session) == ("speak normally", CONSENT["en"], 1.0)
    assert ask(engine, session) == ("what", "Hello", 1.0)


def test_question_that_is_not_understood():
    engine = styled_engine(("what", "Hello"), ("what", None), min_confidence=-0.5)
    session = engine.open(LONG)
    assert ask(engine, session) == ("what", "Hello", 1.0)
    engine.core.runner.lm.log_prob = -0.6
    assert ask(engine, session) == ("what", NOT_UNDERSTOOD["en"], 1.0)


def test_spoken_question_is_answered_without_the_request():
    engine = styled_engine(("说慢一点，今天天气怎么样", "你好"))
    session = engine.open(LONG)
    assert ask(engine, session) == ("说慢一点，今天天气怎么样", "你好", SLOWER)
    prompt, tokens = engine.core.runner.lm.prompt, context_of(session).text[0].tolist()
    assert "怎么样" in prompt.tokenizer.decode(tokens) and "说慢一点" not in prompt.tokenizer.decode(tokens)


def test_typed_requests():
    engine = styled_engine((None, "Hello there"), (None, None), (None, "It's 25"), (None, None))
    session = engine.open(LONG)
    assert ask(engine, session, "Hello") == (None, "Hello there", 1.0)
    assert ask(engine, session, "Say that again, slower") == (None, "Hello there", SLOWER)
    assert ask(engine, session, "Slowly: what is the weather?") == (None, "It's 25", SLOWER)
    assert ask(engine, session, "说慢一点") == (None, CONSENT["zh"], SLOWER)
    tokens = context_of(session).text[0].tolist()
    assert "Slowly" not in engine.core.runner.lm.prompt.tokenizer.decode(tokens)


def test_interrupted_answer_is_said_again_as_a_whole():
    engine = styled_engine(("what", "Hello there"), ("say it slower", None))
    session = engine.open(LONG)
    say(session, noise(0.4))
    session.respond()
    run(engine, until=lambda: session.event_queue.reply_samples >= 2 * PATCH)
    session.interrupt(PATCH)
    run(engine)
    events(session)
    del engine.core.runner.lm.script[: -8 - 3 - len(engine.core.runner.lm.prompt.encode("say it slower")) - 1]
    assert ask(engine, session)[1:] == ("Hello there", SLOWER)


def test_request_of_a_rolled_back_turn_is_forgotten():
    engine = styled_engine(("speak slower", None), ("what", "Hello"))
    session = engine.open(LONG)
    session.start_turn()
    session.append_audio(noise(0.4))
    session.end_turn()
    session.respond()
    talk(engine, [session])
    session.rollback()
    session.end_turn()
    number = session.respond()
    talk(engine, [session])
    assert session.slot.history.context.find(number).rate == 1.0


def test_changed_setting_replaces_what_the_user_asked_for():
    engine = styled_engine(("speak slower", None), ("what", "Hello"))
    session = engine.open(LONG)
    ask(engine, session)
    session.configure(replace(LONG, style=named_style("faster")))
    assert ask(engine, session)[2] == named_style("faster").rate


def test_written_reply_is_asked_in_the_users_words():
    engine = tiny_engine(tiny_lm(chain_of_modality=True))
    session = engine.open(replace(SHORT, speak=False))
    session.add_turn(Turn.user("say it slower"))
    session.respond()
    talk(engine, [session])
    assert "slower" in engine.core.runner.lm.prompt.tokenizer.decode(context_of(session).text[0].tolist())


def test_answer_to_a_tool_has_the_style_of_its_question():
    engine = styled_engine((None, "Hello"), (None, "It's 25"), (None, "Hello"))
    session = engine.open(LONG)
    assert ask(engine, session, "Slowly: what is the weather?") == (None, "Hello", SLOWER)
    session.add_turn(Turn("tool", (Text("25 degrees"),)))
    number = session.respond()
    talk(engine, [session])
    assert session.slot.history.context.find(number).rate == SLOWER
    assert ask(engine, session, "Hello") == (None, "Hello", 1.0)
