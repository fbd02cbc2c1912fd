"""Rollback and truncation: the model remembers what was said and played, and no word more."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from speechgpt2.engine.codec_worker import CodecWorker
from speechgpt2.types import Interrupted, ReplyDone, Speech, TextDelta, Turn
from tests.engine.results import audio_of, context_of, events, reason, same
from tests.engine.tiny import PATCH, SHORT, ScriptedLM, answer, noise, run, say, talk, tiny_engine, tiny_lm


def agrees(engine, session):
    """The row holds what the context says: a row that reads it anew comes to the same state."""
    run(engine)
    context, number = session.slot.history.context, session.slot.slot_number
    runner, lm = engine.core.runner, engine.core.runner.lm
    fresh, state = lm.prefill(context_of(session), lm.init_state(1, context.capacity))
    assert context.pending_patches == 0
    for ours, theirs in zip(runner.states.of_batches[number // 4].stack.layers, state.stack.layers, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert torch.allclose(a[number % 4, :, : context.length], b[0, :, : context.length], atol=1e-4)
    assert torch.allclose(runner.states.hidden[number], fresh[0], atol=1e-4)
    return True


@pytest.mark.parametrize(("seconds", "steps"), [(0.4, 0), (0.4, 3), (0.4, 40), (0.48, 14), (0.5, 14)])
def test_rolled_back_turn_equals_an_uninterrupted_one(seconds, steps):
    """Ended, perhaps answered, and taken back: as if it had been spoken in one go."""
    whole, engine = tiny_engine(), tiny_engine()
    pcm = noise(1.1)
    cut = int(seconds * 24_000)
    plain, session = whole.open(SHORT), engine.open(SHORT)
    wanted = answer(whole, plain, pcm)

    session.start_turn()
    session.append_audio(pcm[:cut])
    session.end_turn()
    session.respond()
    for _ in range(steps):
        engine.clock.pass_by(engine.step() or 0.0)
    session.rollback()
    session.append_audio(pcm[cut:])
    assert not session.replying and events(session) == []
    session.end_turn()
    session.respond()
    found = talk(engine, [session])[session]
    assert same(plain, session) and np.array_equal(audio_of(found), audio_of(wanted)) and agrees(engine, session)


def test_complete_speculative_reply_is_rolled_back():
    engine, other = tiny_engine(), tiny_engine()
    session, plain = engine.open(replace(SHORT, max_patches=3)), other.open(replace(SHORT, max_patches=3))
    session.start_turn()
    session.append_audio(noise(0.5))
    session.end_turn()
    session.respond()
    talk(engine, [session])
    session.rollback()
    session.append_audio(noise(0.3, 1))
    session.end_turn()
    say(plain, np.concatenate([noise(0.5), noise(0.3, 1)]))
    run(engine)
    run(other)
    assert same(session, plain)


def test_discarded_turn_leaves_no_trace():
    engine, other = tiny_engine(), tiny_engine()
    session, plain = engine.open(SHORT), other.open(SHORT)
    session.start_turn()
    session.append_audio(noise(0.7))
    for _ in range(3):
        engine.step()
    session.discard_turn()
    for e, s in ((engine, session), (other, plain)):
        say(s, noise(0.4, 2))
        run(e)
    assert same(session, plain) and agrees(engine, session)


# while others keep the model busy, it does not wait for the codec: turns may change under what is being heard


class SlowCodec(CodecWorker):
    """A codec whose results are there only after so many looks."""

    def __init__(self, codec, looks=5):
        self.codec, self.looks = codec, looks

    @property
    def alive(self):
        return True

    def _submit(self, method, *arguments):
        future, left = self.codec._submit(method, *arguments), iter(range(self.looks))
        return SimpleNamespace(result=future.result, done=lambda: next(left, None) is None)

    def close(self):
        self.codec.close()


def busy_engine():
    """Somebody else is about to be answered for a long time."""
    engine = tiny_engine()
    engine.core.runner.codec = SlowCodec(engine.core.runner.codec)
    other = engine.open(replace(SHORT, max_patches=200))
    other.add_turn(Turn.user("Hello"))
    other.respond()
    return engine, other


@pytest.mark.parametrize("steps", [1, 3, 5, 6, 7, 8, 9, 11, 20])
@pytest.mark.parametrize("seconds", [0.4, 0.48])
def test_rollback_while_the_end_is_being_encoded(seconds, steps):
    (engine, other), whole, cut = busy_engine(), tiny_engine(), int(seconds * 24_000)
    session, plain, pcm = engine.open(SHORT), whole.open(SHORT), noise(1.1)
    session.start_turn()
    session.append_audio(pcm[:cut])
    session.end_turn()
    session.respond()
    for _ in range(steps):
        engine.step()
    session.rollback()
    session.append_audio(pcm[cut:])
    session.end_turn()
    session.respond()
    found, wanted = talk(engine, [session])[session], answer(whole, plain, pcm)
    other.close()
    assert same(session, plain) and np.array_equal(audio_of(found), audio_of(wanted)) and agrees(engine, session)


@pytest.mark.parametrize("steps", [1, 2, 4, 6, 8, 20])
def test_delete_while_the_end_is_being_encoded(steps):
    (engine, busy), other = busy_engine(), tiny_engine()
    session, plain = engine.open(SHORT), other.open(SHORT)
    number = session.start_turn()
    session.append_audio(noise(0.4))
    session.end_turn()
    for _ in range(steps):
        engine.step()
    session.delete_turn(number)
    for e, s in ((engine, session), (other, plain)):
        answer(e, s, noise(0.5, 3))
    busy.close()
    assert same(session, plain) and agrees(engine, session)


def test_turn_end_is_encoded_beside_pressed_sessions():
    """Its codes come late, and meanwhile the others' answer goes on."""
    engine, _ = busy_engine()
    session = engine.open(SHORT)
    say(session, noise(0.4))
    session.respond()
    engine.step()
    before = engine.stats().steps
    run(engine, until=lambda: session.slot.input.encoded)
    assert engine.stats().steps > before + 3


# a scripted answer: a draft, a patch of silence, then words that sound one patch after they are named

WORDS = ["Hello", " there", ", what", " is", " weather"]


def random_codes(patches, seed=0):
    return torch.randint(1024, (patches, 3, 3), generator=torch.Generator().manual_seed(seed))


def scripted(words, codes, chain_of_modality=True):
    """An engine whose model says `words`, one every patch, with the sound `codes [P, 3, 3]`; and their tokens."""
    lm = tiny_lm(ScriptedLM, chain_of_modality=chain_of_modality)
    ids, encode = lm.prompt.special_ids, lm.prompt.encode
    written = [*encode("weather"), ids.transcript_end, *encode("".join(words))] if chain_of_modality else []
    named = [encode(word)[0] for word in words]
    row = [*named, *[ids.filler] * (len(codes) - len(named))]
    end = [ids.speech_end, *encode(lm.prompt.template.turn_end), ids.eos]
    lm.script = [(token, None) for token in [*written, ids.speech_start]]
    lm.script += list(zip(row, codes, strict=True)) + [(token, None) for token in end]
    return tiny_engine(lm), named


@pytest.mark.parametrize("chain_of_modality", [False, True], ids=["plain", "draft"])
@pytest.mark.parametrize("played", [0, 1, 3, 5])
def test_interrupted_reply_keeps_only_what_was_played(chain_of_modality, played):
    """By token positions and codes, in the context and in the row."""
    codes = random_codes(8)
    engine, named = scripted(WORDS, codes, chain_of_modality)
    session = engine.open(SHORT)
    say(session, noise(0.4))
    session.respond()
    run(engine, until=lambda: session.event_queue.reply_samples >= 5 * PATCH)
    before = session.slot.history.context.spans[0].stop
    samples = played * PATCH + 700  # within a patch: one that was not played to its end does not count
    session.interrupt(samples)
    found = events(session)
    assert found == [Interrupted(samples if played < 5 else 5 * PATCH), ReplyDone("interrupted")]
    engine.step()
    memory, c = context_of(session), engine.core.runner.lm.config
    speech = memory.codes[0, before:][memory.codes[0, before:, 0, 0] != c.no_speech]
    assert torch.equal(speech, codes[:played])
    tokens = memory.text[0, before:].tolist()
    for place, token in enumerate(named):
        times = (2 if chain_of_modality else 1) if place + 1 < played else 0  # in the draft and at its patch
        assert tokens.count(token) == times, (place, tokens)
    if not played:
        assert memory.text.shape[1] == before  # as if there had been no answer
    assert agrees(engine, session) and session.slot.history.context.length == session.slot.history.context.kv_length


def test_unplayed_audio_does_not_affect_later_turns():
    """Two answers that differ only in what was cut off: all that comes after is the same to the last bit."""
    results = []
    start = random_codes(3)
    for words, rest in ((WORDS, random_codes(5, 1)), ([*WORDS[:2], " 25", " degrees", "!"], random_codes(5, 2))):
        engine, _ = scripted(words, torch.cat([start, rest]))
        session = engine.open(SHORT)
        say(session, noise(0.4))
        session.respond()
        run(engine, until=lambda s=session: s.event_queue.reply_samples >= 5 * PATCH)
        session.interrupt(3 * PATCH + 10)
        engine.core.runner.lm.__class__ = type(tiny_lm())  # from now on it speaks for itself
        reply = audio_of(answer(engine, session, noise(0.3, 3)))
        results.append((context_of(session), reply))
    (first, a), (second, b) = results
    assert torch.equal(first.text, second.text) and torch.equal(first.codes, second.codes)
    assert np.array_equal(a, b) and first.text.shape[1] > 100


def test_truncate_corrects_an_earlier_estimate():
    """The client's word comes while the user's next turn is going on, and corrects what was assumed."""
    at_once, later = (scripted(WORDS, random_codes(8))[0] for _ in range(2))
    sessions = []
    for engine, guess in ((at_once, 2), (later, 5)):
        session = engine.open(SHORT)
        say(session, noise(0.4))
        number = session.respond()
        run(engine, until=lambda s=session: s.event_queue.reply_samples >= 5 * PATCH)
        session.interrupt(guess * PATCH)
        session.start_turn()
        session.append_audio(noise(0.5, 3))
        engine.step()
        session.truncate(number, 2 * PATCH)
        session.end_turn()
        run(engine)
        sessions.append(session)
    assert same(*sessions) and agrees(later, sessions[1])


def test_complete_reply_can_be_truncated():
    """It was made faster than it was played."""
    engine, named = scripted(WORDS, random_codes(8))
    session = engine.open(replace(SHORT, paced=False))
    say(session, noise(0.4))
    number = session.respond()
    found = talk(engine, [session])[session]
    assert reason(found) == "stop" and len(audio_of(found)) == 8 * PATCH
    whole = context_of(session)
    session.truncate(number, 99 * PATCH)
    engine.step()
    assert torch.equal(context_of(session).text, whole.text)
    session.interrupt(3 * PATCH)
    engine.step()
    assert events(session) == [Interrupted(3 * PATCH)]
    assert context_of(session).text[0].tolist().count(named[2]) == 0 and agrees(engine, session)


def test_interrupted_written_reply_keeps_its_text():
    engine = tiny_engine()
    session = engine.open(replace(SHORT, speak=False, temperature=0.0))
    session.add_turn(Turn.user("Hello"))
    session.respond()
    run(engine, until=lambda: session.slot.generation is not None and session.slot.generation.stop.patches == 0)
    engine.step()
    session.interrupt(0)
    run(engine)
    prompt, tokens = engine.core.runner.lm.prompt, context_of(session).text[0].tolist()
    end = prompt.turn_end(speaking=False).text[0].tolist()
    assert tokens[-len(end) :] == end and agrees(engine, session)


def test_interrupted_reply_that_had_not_begun_leaves_no_trace():
    engine = tiny_engine()
    session = engine.open(SHORT)
    session.start_turn()
    session.append_audio(noise(0.4))
    session.end_turn()
    session.respond()
    session.interrupt(0)
    run(engine)
    assert [span.role for span in session.slot.history.context.spans] == ["user"] and session.slot.generation is None
    assert events(session) == [Interrupted(0), ReplyDone("interrupted")]


def test_deleted_turns_leave_no_trace():
    engine, other = tiny_engine(), tiny_engine()
    session, plain = engine.open(SHORT), other.open(SHORT)
    secret = session.add_turn(Turn.user("25 degrees"))
    answer = session.add_turn(Turn("assistant", (Speech(pcm=noise(0.4), text="weather"),)))
    run(engine)
    for s in (session, plain):
        s.add_turn(Turn.user("Hello"))
    session.delete_turn(answer)
    session.delete_turn(secret)
    session.delete_turn(99)
    run(engine)
    run(other)
    assert same(session, plain) and agrees(engine, session)


def test_mute_reply_is_spoken_after_all():
    """As if it had been spoken from the beginning."""
    codes = random_codes(8)
    engine, _ = scripted(WORDS, codes)
    other, _ = scripted(WORDS, codes)
    ids, encode = engine.core.runner.lm.prompt.special_ids, engine.core.runner.lm.prompt.encode
    script = engine.core.runner.lm.script
    start = [token for token, _ in script].index(ids.speech_start)
    end = [(token, None) for token in [*encode(engine.core.runner.lm.prompt.template.turn_end), ids.eos]]
    engine.core.runner.lm.script = script[:start] + end + script[start + 1 :]
    session, plain = engine.open(SHORT), other.open(SHORT)
    replies = []
    for e, s in ((engine, session), (other, plain)):
        replies.append(answer(e, s, noise(0.4)))
    assert np.array_equal(audio_of(replies[0]), audio_of(replies[1])) and len(audio_of(replies[0])) == 8 * PATCH
    texts = ["".join(e.text for e in found if isinstance(e, TextDelta)).strip() for found in replies]
    assert texts == ["Hello there, what is weather"] * 2 and reason(replies[0]) == "stop"
    assert same(session, plain) and agrees(engine, session)
