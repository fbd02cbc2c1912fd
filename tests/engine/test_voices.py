"""Voices: the greeting at the start of the context, one per session, kept by all that edits the context."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from speechgpt2.duplex.protocol import EngineVoice, ReplyOptions, SessionSettings
from speechgpt2.errors import UserError
from speechgpt2.lm.greetings import Greetings
from speechgpt2.types import Speech
from tests.engine.results import audio_of, context_of, events
from tests.engine.tiny import SHORT, noise, run, say, talk, tiny_engine, tiny_lm

CODES = np.arange(4 * 3 * 3).reshape(12, 3)
ANNA = Speech(codes=CODES, text="hello", tokens=(65, 66, 67, 68))
BEN = Speech(codes=CODES + 100, text="weather", tokens=(70, 71, 72, 73))


def lm_with_voices(default=None, **options):
    lm = tiny_lm(**options)
    lm.prompt.greetings = Greetings({"anna": ANNA, "ben": BEN}, default)
    return lm


@pytest.fixture
def engine():
    engine = tiny_engine(lm_with_voices())
    yield engine
    engine.close()


def greeting_at_start(session, speech):
    """Whether the context holds this greeting, patch for patch, after the system line."""
    patches, prompt = context_of(session), session.slot.prompt
    begin = prompt.system_prompt("s2s").text.shape[1] + prompt.reply_start().text.shape[1] + 1
    codes, text = patches.codes[0, begin : begin + 4].flatten(0, 1), patches.text[0, begin : begin + 4]
    return torch.equal(codes, torch.from_numpy(speech.codes)) and tuple(text.tolist()) == speech.tokens


def test_sessions_of_one_engine_have_different_voices(engine):
    anna, ben, plain = (engine.open(replace(SHORT, voice=voice)) for voice in ("anna", "ben", None))
    run(engine)
    assert greeting_at_start(anna, ANNA) and greeting_at_start(ben, BEN)
    assert not greeting_at_start(plain, ANNA)
    prompt = engine.prompt
    golden = prompt.system_prompt("s2s", prompt.greeting(ANNA))
    assert all(torch.equal(a, b) for a, b in zip(context_of(anna), golden, strict=True))
    plain_golden = prompt.system_prompt("s2s")
    assert all(torch.equal(a, b) for a, b in zip(context_of(plain), plain_golden, strict=True))


def test_voice_survives_interruption_rollback_and_deletion(engine):
    session = engine.open(replace(SHORT, voice="ben"))
    say(session, noise(0.5))
    run(engine)
    session.respond()
    run(engine, until=lambda: session.slot.generation is not None and session.slot.generation.stop.patches > 3)
    session.rollback()
    run(engine)
    assert greeting_at_start(session, BEN)
    session.append_audio(noise(0.3, seed=1))
    session.end_turn()
    number = session.respond()
    run(engine, until=lambda: session.slot.generation is not None and session.slot.generation.stop.patches > 3)
    session.interrupt(0)
    run(engine)
    assert greeting_at_start(session, BEN)
    session.delete_turn(number)
    session.delete_turn(1)
    run(engine)
    assert greeting_at_start(session, BEN)


def test_voice_holds_while_modes_and_settings_change(engine):
    settings = replace(SHORT, voice="anna")
    session = engine.open(settings)
    session.respond(ReplyOptions(speak=False))
    talk(engine, [session])
    assert not greeting_at_start(session, ANNA)  # a written reply needs no voice
    session.configure(replace(settings, instructions=None, temperature=0.5))
    session.respond()
    talk(engine, [session])
    assert greeting_at_start(session, ANNA)
    session.configure(replace(settings, voice="ben"))
    run(engine)
    assert greeting_at_start(session, BEN)


def test_session_s_own_greeting_comes_before_its_voice(engine):
    own = Speech(codes=CODES + 200, text="weather", tokens=(70, 66, 67, 68))
    session = engine.open(replace(SHORT, voice="anna", greeting=own))
    run(engine)
    assert greeting_at_start(session, own)


def test_unknown_voice_is_refused_with_the_known_ones(engine):
    with pytest.raises(UserError, match="no voice 'carl'; this model's voices: anna, ben"):
        engine.open(SessionSettings(voice="carl"))
    session = engine.open(SHORT)
    with pytest.raises(UserError, match="no voice 'carl'"):
        session.configure(SessionSettings(voice="carl"))
    assert engine.stats().used == 1


def test_engine_lists_its_voices_and_uses_the_default():
    engine = tiny_engine(lm_with_voices(default="ben"))
    assert engine.voices == (EngineVoice("anna", "hello", False), EngineVoice("ben", "weather", True))
    usual, anna = engine.open(SHORT), engine.open(replace(SHORT, voice="anna"))
    named = engine.open(replace(SHORT, voice="default"))
    run(engine)
    assert greeting_at_start(usual, BEN) and greeting_at_start(named, BEN) and greeting_at_start(anna, ANNA)
    engine.close()


def test_model_without_greetings_has_one_voice():
    engine = tiny_engine()
    assert engine.voices == ()
    with pytest.raises(UserError, match="no voice 'anna'; this model has one voice"):
        engine.open(SessionSettings(voice="anna"))
    session = engine.open(replace(SHORT, voice="default"))
    run(engine)
    assert not events(session)
    engine.close()


def test_reading_aloud_has_the_session_s_voice():
    engine = tiny_engine(lm_with_voices(chain_of_modality=True))
    session = engine.open(replace(SHORT, voice="ben"))
    session.respond(ReplyOptions(text="hello weather"))
    talk(engine, [session])
    prompt = engine.prompt
    golden = prompt.tts_prompt("hello weather", prompt.greeting(BEN))
    held = context_of(session)
    count = golden.text.shape[1]
    assert torch.equal(held.text[:, :count], golden.text) and torch.equal(held.codes[:, :count], golden.codes)
    engine.close()


def test_system_prompt_is_read_once_for_all_sessions_of_a_voice(monkeypatch):
    lm, chunks = lm_with_voices(), []
    prefill = lm.prefill

    def counting(patches, *rest, **options):
        chunks.append(patches.text.shape[1])
        return prefill(patches, *rest, **options)

    monkeypatch.setattr(lm, "prefill", counting)
    engine, fresh = tiny_engine(lm), tiny_engine(lm)
    for voice in ("anna", None):
        engine.open(replace(SHORT, voice=voice))
    run(engine)
    assert sum(chunks) > 40
    second, other = engine.open(replace(SHORT, voice="anna")), fresh.open(replace(SHORT, voice="anna"))
    chunks.clear()
    run(engine)
    assert sum(count for count in chunks if count > 1) == 0
    run(fresh)
    for session in (second, other):
        session.respond()
    found = talk(engine, [second])[second], talk(fresh, [other])[other]
    assert len(audio_of(found[0])) and np.array_equal(*map(audio_of, found))
    engine.close()
    fresh.close()
