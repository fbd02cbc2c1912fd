"""Live sessions: results equal those of one conversation alone, and nothing leaks between sessions."""

import asyncio
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from speechgpt2.chat import SpeechGPT
from speechgpt2.duplex.protocol import EngineFull, ReplyOptions, SessionSettings
from speechgpt2.engine.codec_worker import BatchedCodec
from speechgpt2.engine.config import EngineConfig
from speechgpt2.engine.engine import Engine
from speechgpt2.errors import UserError
from speechgpt2.lm.config import SamplingConfig
from speechgpt2.lm.sampling import SamplingParams
from speechgpt2.streaming import tree_map
from speechgpt2.types import AudioDelta, Error, ReplyDone, Speech, TextDelta, Turn
from tests.engine.results import audio_of, context_of, events, reason, same
from tests.engine.tiny import SHORT, Clock, answer, models, noise, run, say, talk, tiny_engine, tiny_lm


@pytest.mark.parametrize("seconds", [0.0, 0.05, 1.2, 1.3])
def test_one_turn_equals_chat(seconds):
    """Encoded and read while it is spoken, in whatever chunks: the same patches, and the same answer."""
    codec, lm = models()
    engine, pcm = tiny_engine(), noise(1.2)[: int(seconds * 24_000)] if seconds < 1.2 else noise(seconds)
    session = engine.open(SHORT)
    ours = answer(engine, session, pcm)
    alone = SpeechGPT(codec, lm).conversation("s2s", sampling=SamplingParams.for_batch(1, seed=5), max_patches=25)
    if not len(pcm):  # a dialogue knows no empty recording
        assert audio_of(ours).any()
        return
    theirs = alone.ask(Turn.user(speech=pcm))
    assert np.allclose(audio_of(ours), theirs.pcm, atol=1e-6) and len(theirs.pcm)
    assert "".join(e.text for e in ours if isinstance(e, TextDelta)).strip() == theirs.text
    assert reason(ours) == theirs.reason


def test_many_turns_equal_chat():
    codec, lm = models()
    engine = tiny_engine()
    session = engine.open(SHORT)
    alone = SpeechGPT(codec, lm).conversation("s2s", sampling=SamplingParams.for_batch(1, seed=5), max_patches=25)
    for turn in range(3):
        theirs = alone.ask(Turn.user(speech=noise(0.7, turn)))
        assert np.allclose(audio_of(answer(engine, session, noise(0.7, turn))), theirs.pcm, atol=1e-6)


@pytest.mark.parametrize("draft_tokens", [0, 3])
def test_results_are_bit_equal_alone_and_among_fifteen_sessions(draft_tokens):
    """Another place in another batch, others with other settings who come, talk and leave at other times."""
    lm = tiny_lm(chain_of_modality=True, draft_tokens=draft_tokens) if draft_tokens else None
    alone, crowd = tiny_engine(lm, slots=16), tiny_engine(lm, slots=16)
    settings = SessionSettings(seed=3, max_patches=20)
    me = alone.open(settings)
    wanted = [answer(alone, me, noise(0.8, 1)), answer(alone, me, noise(0.5, 2))]

    others = [crowd.open(replace(settings, seed=i, top_k=5 * i, temperature=0.2 * (i % 5))) for i in range(6)]
    for i, other in enumerate(others):
        say(other, noise(0.3 + 0.1 * i, 10 + i))
        other.respond()
    for _ in range(4):
        crowd.step()
    again = crowd.open(settings)
    others += [crowd.open(replace(settings, seed=100 + i, speak=i % 2 == 0)) for i in range(9)]
    assert crowd.stats().used == 16 and again.event_queue is not me.event_queue
    for i, other in enumerate(others[6:]):
        other.add_turn(Turn.user("Hello there " * i))
        other.respond()
    say(again, noise(0.8, 1), chunk=1111)
    others[2].close()
    crowd.step()
    again.respond()
    first = talk(crowd, [again, *(other for other in others if other is not others[2])])[again]
    second = answer(crowd, again, noise(0.5, 2), chunk=4000)
    assert np.array_equal(audio_of(first), audio_of(wanted[0])) and len(audio_of(first)) > 10_000
    assert np.array_equal(audio_of(second), audio_of(wanted[1])) and same(me, again)
    assert again.slot.slot_number != me.slot.slot_number
    assert torch.equal(
        alone.core.runner.states.hidden[me.slot.slot_number], crowd.core.runner.states.hidden[again.slot.slot_number]
    )


def test_session_samples_as_the_model_does_by_default():
    lm = tiny_lm()
    lm.config = lm.prompt.config = replace(lm.config, sampling=SamplingConfig(temperature=0.0))
    engine = tiny_engine(lm)
    settings = [SHORT, replace(SHORT, temperature=0.0), replace(SHORT, temperature=0.8)]
    found = [answer(engine, engine.open(each), noise(0.5)) for each in settings]
    by_default, greedy, drawn = ([event.text for event in one if isinstance(event, TextDelta)] for one in found)
    assert by_default == greedy != drawn


def test_slot_is_wiped_before_reuse():
    engine, fresh = tiny_engine(slots=1), tiny_engine(slots=1)
    first = engine.open(replace(SHORT, seed=9))
    answer(engine, first, noise(1.0, 7))
    first.add_turn(Turn.user("weather"))
    first.respond()
    for _ in range(6):
        engine.step()
    first.close()
    first.close()
    engine.step()
    runner = engine.core.runner
    codec = runner.codec._codec
    for state in (runner.states.of_batches[0], codec.encoder_states, codec.decoder_states, (runner.states.hidden,)):
        tree_map(lambda leaf: pytest.fail("something is left") if leaf[0].any() else leaf, state)
    second, other = engine.open(SHORT), fresh.open(SHORT)
    ours, theirs = (answer(e, s, noise(0.6)) for e, s in ((engine, second), (fresh, other)))
    assert np.array_equal(audio_of(ours), audio_of(theirs)) and same(second, other)


def test_full_engine_refuses_at_once():
    engine = tiny_engine(slots=2)
    sessions = [engine.open(SHORT), engine.open(SHORT)]
    with pytest.raises(EngineFull, match="2 slots"):
        engine.open(SHORT)
    sessions[0].close()
    engine.step()
    engine.open(SHORT)
    engine.close()
    assert engine.stats().used == 0
    with pytest.raises(EngineFull, match="closing"):
        engine.open(SHORT)


def test_slot_is_free_as_soon_as_the_session_closes():
    """However far behind the engine's thread is: who comes next finds it wiped all the same."""
    engine, fresh = tiny_engine(slots=2), tiny_engine(slots=1)
    stays = engine.open(SHORT)
    for turn in range(20):
        leaves = engine.open(SHORT)
        say(leaves, noise(0.3, turn))
        leaves.respond()
        if turn % 3 == 0:  # the others were never seen by the engine
            engine.step()
        leaves.close()
        assert engine.stats().used == 1
        leaves.close()  # again, when the slot may be another's
    session = engine.open(SHORT)
    leaves.close()
    with pytest.raises(EngineFull):
        engine.open(SHORT)
    wanted = audio_of(answer(fresh, fresh.open(SHORT), noise(0.6)))
    assert np.array_equal(audio_of(answer(engine, session, noise(0.6))), wanted)
    assert np.array_equal(audio_of(answer(engine, stays, noise(0.6))), wanted)


def test_slot_of_a_failed_session_is_free(monkeypatch):
    engine = tiny_engine(slots=1)
    broken = engine.open(SHORT)
    broken.add_turn(Turn.user("Hello"))
    broken.respond()
    engine.step()
    monkeypatch.setattr(broken.slot, "patches_generated", lambda *_: 1 / 0)
    run(engine)
    session = engine.open(SHORT)
    broken.close()
    assert reason(answer(engine, session, noise(0.5)))


def test_typed_turns_and_written_replies():
    _, lm = models()
    engine = tiny_engine()
    session = engine.open(replace(SHORT, speak=False))
    session.add_turn(Turn.user("Hello there"))
    session.respond()
    found = talk(engine, [session])[session]
    assert not any(isinstance(event, AudioDelta) for event in found)
    begin = lm.prompt.system_prompt("t2t").text
    assert torch.equal(context_of(session).text[:, : begin.shape[1]], begin)  # its system line follows how it is used


def test_greeting_and_instructions_come_first():
    _, lm = models()
    engine = tiny_engine()
    greeting = Speech(codes=engine.encode(noise(0.5)), text="Hello")
    session = engine.open(replace(SHORT, instructions="weather", greeting=greeting))
    run(engine)
    spoken = lm.prompt.align_speech(torch.from_numpy(greeting.codes), text="Hello")
    wanted = lm.prompt.system_prompt("s2s", spoken, "weather")
    assert all(torch.equal(a, b) for a, b in zip(context_of(session), wanted, strict=True))
    with pytest.raises(UserError, match="codebooks"):
        engine.open(replace(SHORT, greeting=Speech(codes=np.zeros((3, 2), np.int64))))
    with pytest.raises(UserError):
        engine.encode(np.array([np.nan], np.float32))


def test_added_history_equals_chat():
    codec, lm = models()
    engine, talked = tiny_engine(), SpeechGPT(codec, lm)
    turns = [Turn.user("Hello"), Turn.assistant("there", noise(0.5)), Turn.user(speech=noise(0.6)),
             Turn.assistant("what"), Turn.user("is")]  # fmt: skip
    session = engine.open(replace(SHORT, speak=True))
    for turn in turns:
        session.add_turn(turn)
    session.respond()
    ours = talk(engine, [session])[session]
    theirs = talked.chat(turns, mode="t2s", sampling=SamplingParams.for_batch(1, seed=5), max_patches=25)
    assert np.allclose(audio_of(ours), theirs.pcm, atol=1e-6) and reason(ours) == theirs.reason
    with pytest.raises(UserError):
        session.add_turn(Turn("system", Turn.user("x").segments))


def test_commands_during_a_reply_wait_until_it_ends():
    engine = tiny_engine()
    session = engine.open(SHORT)
    session.add_turn(Turn.user("Hello"))
    first = session.respond()
    later = session.add_turn(Turn.user("there"))
    with pytest.raises(UserError, match="in progress"):
        session.respond()
    talk(engine, [session])
    assert [span.number for span in session.slot.history.context.spans] == [1, first, later]


def test_new_settings_apply_from_the_next_reply():
    engine, other = tiny_engine(), tiny_engine()
    session, wanted = engine.open(SHORT), other.open(replace(SHORT, instructions="weather", seed=8))
    session.configure(replace(SHORT, instructions="weather", seed=8))
    ours, theirs = (answer(e, s, noise(0.6)) for e, s in ((engine, session), (other, wanted)))
    assert np.array_equal(audio_of(ours), audio_of(theirs)) and same(session, wanted)


def test_reply_options_override_instructions():
    engine, other = tiny_engine(), tiny_engine()
    session, wanted = engine.open(SHORT), other.open(replace(SHORT, instructions="weather"))
    ours, theirs = (
        answer(engine, session, noise(0.6), ReplyOptions(instructions="weather")),
        answer(other, wanted, noise(0.6)),
    )
    assert np.array_equal(audio_of(ours), audio_of(theirs)) and same(session, wanted)
    assert reason(answer(engine, session, noise(0.5))) and reason(answer(other, wanted, noise(0.5)))
    usual = engine.core.runner.lm.prompt.system_prompt("s2s").text
    assert torch.equal(context_of(session).text[:, : usual.shape[1]], usual) and not same(session, wanted)


def test_too_long_reply_instructions_fail_only_that_reply():
    engine = tiny_engine()
    session = engine.open(SHORT)
    session.add_turn(Turn.user("Hello"))
    session.respond(ReplyOptions(instructions="weather " * 300))
    found = talk(engine, [session])[session]
    assert len(found) == 1 and isinstance(found[0], Error) and "shorter" in found[0].message
    assert reason(answer(engine, session, noise(0.5)))


def test_session_is_backlogged_until_commands_are_executed():
    engine = tiny_engine()
    session, other = engine.open(SHORT), engine.open(SHORT)
    assert not session.backlogged
    session.configure(replace(SHORT, instructions="a" * 4_000))
    assert not session.backlogged  # one long text is no flood
    for number in range(70):
        session.configure(replace(SHORT, instructions=f"Be brief {number}."))
    assert session.backlogged and not other.backlogged
    engine.step()
    assert not session.backlogged


def test_unchanged_instructions_are_prefilled_once(monkeypatch):
    engine, read = tiny_engine(), []
    session = engine.open(SHORT)
    engine.step()
    opening = session.slot.prompt.system_prompt
    monkeypatch.setattr(
        session.slot.prompt, "system_prompt", lambda *arguments: read.append(arguments) or opening(*arguments)
    )
    for speed in (0.8, 0.8, 0.7):
        session.configure(replace(SHORT, instructions="Be brief.", temperature=speed))
        engine.step()
    assert len(read) == 1


def test_text_longer_than_the_context_is_refused_before_tokenizing(monkeypatch):
    engine = tiny_engine()
    session, long = engine.open(SHORT), "a" * (16 * engine.config.context + 1)
    engine.step()
    monkeypatch.setattr(session.slot.prompt, "encode", lambda text: pytest.fail("it was read"))
    for ask in (
        lambda: session.add_turn(Turn.user(long)),
        lambda: session.add_turn(Turn.assistant(long)),
        lambda: session.respond(ReplyOptions(instructions=long)),
        lambda: session.configure(replace(SHORT, instructions=long)),
    ):
        with pytest.raises(UserError, match="too long"):
            ask()
    assert not session.replying


def test_reading_aloud():
    engine = tiny_engine(tiny_lm(chain_of_modality=True))
    session = engine.open(SHORT)
    session.respond(ReplyOptions(text="Hello there", max_patches=9))
    found = talk(engine, [session])[session]
    assert found[0] == TextDelta("Hello there") and len(audio_of(found))
    recital = engine.core.runner.lm.prompt.tts_prompt("Hello there")
    assert torch.equal(context_of(session).text[:, : recital.text.shape[1]], recital.text)


@pytest.mark.parametrize("chain_of_modality", [True, False])
def test_given_text_may_be_written(chain_of_modality):
    """The model remembers it, and answers the next turn as if it had written it itself."""
    engine = tiny_engine(tiny_lm(chain_of_modality=chain_of_modality))
    given, other = engine.open(SHORT), engine.open(SHORT)
    for session in (given, other):
        session.add_turn(Turn.user("Hello"))
    given.respond(ReplyOptions(text="Hello there", speak=False))
    assert talk(engine, [given])[given] == [TextDelta("Hello there"), ReplyDone("stop")]
    other.add_turn(Turn.assistant("Hello there"))
    run(engine)
    assert same(given, other)
    found = [answer(engine, session, noise(0.5)) for session in (given, other)]
    assert reason(found[0]) and np.array_equal(*map(audio_of, found))


def test_unsupported_request_is_an_error_and_the_session_continues():
    engine = tiny_engine()
    session, other = engine.open(SHORT), engine.open(SHORT)
    session.respond(ReplyOptions(text="Hello"))
    other.add_turn(Turn.user("Hello"))
    other.respond()
    found = talk(engine, [session, other])
    assert [type(event) for event in found[session]] == [Error] and reason(found[other])
    assert reason(answer(engine, session, noise(0.5)))


def test_error_in_one_session_does_not_affect_others(monkeypatch):
    """A slot that breaks in the middle of a step is closed; those beside it get what they would have got."""
    alone, both = tiny_engine(), tiny_engine()
    wanted = answer(alone, alone.open(SHORT), noise(0.6))
    broken, session = both.open(SHORT), both.open(SHORT)
    say(broken, noise(0.5, 1))
    broken.respond()
    both.step()
    monkeypatch.setattr(broken.slot, "patches_generated", lambda *_: 1 / 0)
    assert np.array_equal(audio_of(answer(both, session, noise(0.6))), audio_of(wanted))
    assert [type(event) for event in events(broken)] == [Error]
    assert both.stats().used == 1 and not broken.replying
    with pytest.raises(UserError, match="closed"):
        broken.add_turn(Turn.user("Hello"))


def test_failed_step_ends_only_its_sessions(monkeypatch):
    engine = tiny_engine()
    session, idle = engine.open(SHORT), engine.open(SHORT)
    run(engine)
    session.add_turn(Turn.user("Hello"))
    monkeypatch.setattr(engine.core.runner.prefiller, "prefill", lambda *_: 1 / 0)
    engine.step()
    monkeypatch.undo()
    assert isinstance(events(session)[0], Error) and engine.stats().used == 1
    assert reason(answer(engine, idle, noise(0.5)))


def test_failed_step_wipes_after_decoding_ends(monkeypatch):
    """Or it would speak into a row that is wiped meanwhile."""
    engine = tiny_engine()
    session = engine.open(SHORT)
    session.add_turn(Turn.user("Hello"))
    session.respond()
    run(engine, until=lambda: session.event_queue.reply_samples)
    runner, done = engine.core.runner, []
    codec = runner.codec._codec
    decode, wipe = codec.codec.decode, BatchedCodec.wipe

    def slowly(*args):
        time.sleep(0.2)
        done.append("spoken")
        return decode(*args)

    monkeypatch.setattr(codec.codec, "decode", slowly)
    monkeypatch.setattr(BatchedCodec, "wipe", lambda self, slot: (done.append("wiped"), wipe(self, slot)))
    monkeypatch.setattr(runner, "read_rows", lambda *_: 1 / 0)
    for _ in range(3):
        engine.clock.pass_by(1.0)
        engine.step()
    assert done == ["spoken", "wiped"] and isinstance(events(session)[-1], Error)


def test_invalid_calls_change_nothing():
    engine = tiny_engine()
    session = engine.open(SHORT)
    infinite = np.array([np.inf], np.float32)
    for call in (
        lambda: session.append_audio(noise(0.1)),
        session.end_turn,
        session.rollback,
        session.discard_turn,
        lambda: session.interrupt(5),
        lambda: session.append_audio(infinite),
    ):
        with pytest.raises(UserError):
            call()
    session.start_turn()
    for call in (session.start_turn, session.respond, lambda: session.add_turn(Turn.user("Hello"))):
        with pytest.raises(UserError):
            call()
    session.discard_turn()
    run(engine)
    assert session.slot.history.context.spans == [] and not events(session)


def test_generation_is_paced_by_playback():
    engine = tiny_engine(buffer_seconds=0.5)
    session = engine.open(replace(SHORT, max_patches=200))
    say(session, noise(0.3))
    session.respond()
    began, samples, leads = None, 0, []
    while session.replying:
        wait = engine.step()
        for event in events(session):
            if isinstance(event, AudioDelta):
                began = engine.clock.now if began is None else began
                samples += len(event.pcm)
                leads.append(samples / 24_000 - (engine.clock.now - began))
        engine.clock.pass_by(wait or 0.0)
    assert len(leads) > 20 and max(leads) <= 0.5 + 0.12 and min(leads[3:]) > 0.3


@pytest.mark.parametrize("paced", [True, False])
def test_generation_stops_while_audio_is_unread(paced):
    engine = tiny_engine(buffer_seconds=0.5)
    session = engine.open(replace(SHORT, max_patches=200, paced=paced))
    say(session, noise(0.3))
    session.respond()
    for _ in range(300):
        engine.clock.pass_by((engine.step() or 0.0) + 0.01)
    assert session.event_queue.unread_samples <= 0.62 * 24_000 and session.replying
    began = engine.clock.now
    if not paced:
        assert len(audio_of(talk(engine, [session])[session])) > 2 * 24_000
        assert engine.clock.now - began < 1  # as fast as it was read


def test_long_conversation_neither_grows_nor_slows():
    """Twenty turns are longer than the context; what a turn costs does not depend on how many there were."""
    engine = tiny_engine(context=128)
    session = engine.open(replace(SHORT, max_patches=12, instructions="Hello"))
    run(engine)
    opening = context_of(session)
    reads, lengths = [], []
    prefill, taken = engine.core.runner.prefiller.prefill, []

    def counted(chunks):
        taken.extend(chunk.length for chunk in chunks.values())
        return prefill(chunks)

    engine.core.runner.prefiller.prefill = counted
    for turn in range(20):
        taken.clear()
        found = answer(engine, session, noise(0.5, turn))
        run(engine)
        reads.append(sum(taken))
        lengths.append(session.slot.history.context.length)
        assert reason(found) and not any(isinstance(event, Error) for event in found)
    kept = opening.text.shape[1]
    assert torch.equal(context_of(session).text[:, :kept], opening.text)
    assert max(lengths) <= 128 and len(session.slot.history.context.spans) < 12
    assert max(reads) <= 128 + 20 and sum(reads[10:]) <= 1.3 * sum(reads[:10]) + 128


def test_runs_on_a_thread_and_is_read_from_asyncio():
    codec, lm = models()
    engine = Engine(codec, lm, EngineConfig(slots=3, context=256))
    steps = []
    engine.add_step_observer(steps.append)
    engine.start()

    async def one(seed):
        session, found = engine.open(replace(SHORT, max_patches=8)), []
        say(session, noise(0.3, seed))
        session.respond()
        async for event in session.events():
            found.append(event)
            if isinstance(event, ReplyDone):
                session.close()
        return found

    async def several():
        return await asyncio.gather(*(one(seed) for seed in (1, 2, 1)))

    a, b, again = asyncio.run(several())
    assert np.array_equal(audio_of(a), audio_of(again)) and not np.array_equal(audio_of(a), audio_of(b))
    assert all(reason(found) for found in (a, b, again))
    engine.close(drain=5.0)
    assert engine.stats().used == 0 and engine.stats().steps == len(steps) and min(steps) > 0
    assert not any(thread.name == "engine" for thread in threading.enumerate())


def test_alive_reports_failure(monkeypatch):
    codec, lm = models()
    engine = Engine(codec, lm, EngineConfig(slots=1, context=256))
    assert not engine.alive
    engine.start()
    session = engine.open(SHORT)
    assert engine.alive
    monkeypatch.setattr("speechgpt2.engine.core.schedule", lambda *_: 1 / 0)
    session.add_turn(Turn.user("Hello"))
    engine._thread.join(10)
    assert not engine.alive and [type(event) for event in events(session)] == [Error]
    with pytest.raises(EngineFull):
        engine.open(SHORT)


def test_close_drains_replies():
    codec, lm = models()
    engine = Engine(codec, lm, EngineConfig(slots=2, context=256))
    engine.start()

    async def drained():
        session = engine.open(replace(SHORT, max_patches=8))
        session.add_turn(Turn.user("Hello"))
        session.respond()
        closing = asyncio.create_task(asyncio.to_thread(engine.close, 20.0))
        return [event async for event in session.events()], await closing

    found, _ = asyncio.run(drained())
    assert reason(found) in ("stop", "length") and engine.stats().used == 0


def test_mismatched_codes_are_refused():
    codec, lm = models()
    with pytest.raises(UserError, match="codes"):
        Engine(codec, type("Other", (), {"config": replace(lm.config, codebook_size=2048)})(), clock=Clock())
