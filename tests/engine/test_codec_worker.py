"""The codec worker: thread and process give the same results, in order, also when the process dies."""

import os
import signal
import time

import numpy as np
import pytest
import torch

from speechgpt2.engine import codec_worker
from speechgpt2.engine.codec_worker import AudioChunk, BatchedCodec, CodecJournal, CodecProcess
from speechgpt2.engine.config import EngineConfig
from speechgpt2.engine.engine import Engine
from speechgpt2.types import Error, Turn
from tests import needs
from tests.engine.results import audio_of, events
from tests.engine.test_engine import SHORT
from tests.engine.tiny import PATCH, Clock, answer, models, noise

SLOTS = 8


@pytest.fixture(scope="module")
def process():
    process = CodecProcess(models()[0], SLOTS, PATCH)
    yield process
    process.close()
    assert not process.alive


def codes_of(seed, rows):
    return torch.randint(0, 1024, (rows, 3, 3), generator=torch.Generator().manual_seed(seed))


def test_codec_process_equals_thread(process):
    here, pcm = BatchedCodec(models()[0], SLOTS, PATCH), noise(0.5)
    slots, speaking = torch.arange(SLOTS), torch.tensor([True, False, True] + [False] * 5)
    asked = [
        ("encode", {5: AudioChunk(pcm[:PATCH], True, False), 1: AudioChunk(pcm[:1000], True, True)}),
        ("decode", slots, codes_of(1, SLOTS), speaking, [0]),
        ("encode", {5: AudioChunk(pcm[PATCH : PATCH + 500], False, True)}),
        ("decode", slots, codes_of(2, SLOTS), speaking, []),
        ("wipe", 2),
        ("decode", slots, codes_of(3, SLOTS), speaking, []),
    ]
    answers = [getattr(process, method)(*arguments) for method, *arguments in asked]  # none is waited for
    for (method, *arguments), pending in zip(asked, answers, strict=True):
        ours, theirs = getattr(here, method)(*arguments), pending.result()
        if method == "encode":
            assert ours.keys() == theirs.keys() and all(np.array_equal(ours[n], theirs[n]) for n in ours)
        elif method == "decode":
            assert np.array_equal(ours[speaking], theirs[speaking]) and ours[speaking].any()


def test_decoding_is_independent_of_other_slots():
    alone, crowd = (BatchedCodec(models()[0], SLOTS, PATCH) for _ in range(2))
    one, all_of_them = torch.tensor([6]), torch.arange(SLOTS)
    for seed in range(3):
        codes = codes_of(seed, SLOTS)
        ours = alone.decode(one, codes[6:7], torch.tensor([True]), [])[0]
        theirs = crowd.decode(all_of_them.flip(0), codes.flip(0), torch.ones(SLOTS, dtype=torch.bool), [])[1]
        assert np.array_equal(ours, theirs)


def test_failed_call_raises_and_the_process_continues(process):
    failing = process.encode({99: AudioChunk(noise(0.1), True, False)})
    fine = process.encode({0: AudioChunk(noise(0.1), True, True)})
    assert len(fine.result()[0])
    with pytest.raises(RuntimeError, match="IndexError"):
        failing.result()


@pytest.fixture
def mortal():
    """A codec process that tests may kill."""
    worker = CodecProcess(models()[0], SLOTS, PATCH)
    yield worker
    worker.close()


def kill(worker):
    worker.process.kill()
    worker.process.join()


@pytest.mark.parametrize("moment", ["before a call", "during a call"])
def test_new_process_continues_where_the_old_one_died(mortal, moment):
    """Turns and replies in progress go on with equal bits: the new process has the states of the old one."""
    here, pcm = BatchedCodec(models()[0], SLOTS, PATCH), noise(0.7)
    slots, speaking = torch.arange(SLOTS), torch.tensor([True] * 3 + [False] * 5)
    turn = [{4: AudioChunk(pcm[at : at + PATCH], at == 0, False)} for at in range(0, 5 * PATCH, PATCH)]
    for number, chunks in enumerate(turn):
        asked = [("encode", chunks), ("decode", slots, codes_of(number, SLOTS), speaking, [0, 1] if not number else [])]
        if number == 3 and moment == "before a call":
            kill(mortal)
        answers = [getattr(mortal, method)(*arguments) for method, *arguments in asked]
        if number == 3 and moment == "during a call":
            kill(mortal)
        ours = [getattr(here, method)(*arguments) for method, *arguments in asked]
        assert np.array_equal(answers[0].result()[4], ours[0][4])
        assert np.array_equal(answers[1].result()[speaking], ours[1][speaking]) and ours[1].any()
    assert mortal.alive and mortal.process.is_alive()


def test_process_that_dies_unused_is_replaced(mortal, monkeypatch):
    kill(mortal)
    end = time.monotonic() + 180
    while not mortal.process.is_alive():
        assert time.monotonic() < end
        time.sleep(0.05)
    mortal.wipe(0).result()


def test_process_that_dies_again_and_again_fails(mortal, monkeypatch):
    monkeypatch.setattr(codec_worker, "WATCH_INTERVAL", 1000.0)
    kill(mortal)
    mortal.wipe(0).result()
    monkeypatch.setattr(codec_worker, "MAX_RESTARTS", 1)
    kill(mortal)
    with pytest.raises(RuntimeError, match="ended, more than 1 times"):
        mortal.wipe(0).result()
    assert not mortal.alive


def test_journal_is_bounded_and_forgets_closed_slots():
    journal, chunk = CodecJournal(), AudioChunk(noise(0.1), True, False)
    slots, speaking = torch.arange(2), torch.tensor([True, False])
    for number in range(codec_worker.JOURNAL_PATCHES + 20):
        journal.add(BatchedCodec.encode, ({0: chunk._replace(first=number == 0)},))
        journal.add(BatchedCodec.decode, (slots, codes_of(number, 2), speaking, []))
    calls = list(journal.calls())
    assert len(calls) == 2 * codec_worker.JOURNAL_PATCHES
    assert calls[0][1][0][0].first and not calls[1][1][0][0].first and calls[-1][1][0].tolist() == [0]
    journal.add(BatchedCodec.encode, ({0: chunk},))
    assert len(list(journal.calls())) == 1 + codec_worker.JOURNAL_PATCHES  # another turn has begun
    journal.add(BatchedCodec.wipe, (0,))
    assert not list(journal.calls())


def test_engine_with_codec_process_equals_thread_and_survives_its_death():
    codec, lm = models()
    near, far = (Engine(codec, lm, EngineConfig(slots=8, context=256, codec_process=apart), Clock())
                 for apart in (False, True))  # fmt: skip
    replies = []
    for engine in (near, far):
        session = engine.open(SHORT)
        for seconds in (0.7, 0.4):
            replies.append(audio_of(answer(engine, session, noise(seconds))))
            if engine is far:
                kill(far.core.runner.codec)  # between two turns; the second one goes on in another process
    assert all(map(np.array_equal, replies[:2], replies[2:])) and all(reply.any() for reply in replies)
    far.close()


def test_engine_reports_a_codec_that_cannot_be_replaced(monkeypatch):
    codec, lm = models()
    engine = Engine(codec, lm, EngineConfig(slots=8, context=256, codec_process=True))
    engine.start()
    session = engine.open(SHORT)
    worker = engine.core.runner.codec
    monkeypatch.setattr(codec_worker, "MAX_RESTARTS", 0)
    kill(worker)
    session.add_turn(Turn.user("Hello"))
    session.respond()
    found, end = [], time.monotonic() + 60
    while not found and time.monotonic() < end:
        found = events(session)
        time.sleep(0.01)
    assert isinstance(found[-1], Error) and not engine.alive
    engine.close()
    with pytest.raises(RuntimeError, match="ended"):
        worker.wipe(0).result()


@needs.condition(hasattr(signal, "SIGSTOP"), "the system has no SIGSTOP")
def test_process_that_does_not_answer_is_replaced(monkeypatch):
    """A stopped process is as good as dead."""
    monkeypatch.setattr(codec_worker, "MAX_SILENCE", 0.5)
    monkeypatch.setattr(codec_worker, "WATCH_INTERVAL", 0.1)
    worker = CodecProcess(models()[0], SLOTS, PATCH)
    worker.wipe(0).result()
    stopped = worker.process.pid
    os.kill(stopped, signal.SIGSTOP)
    monkeypatch.setattr(codec_worker, "MAX_SILENCE", 60.0)
    worker._waiting_since = -1000.0  # as if it had been asked long ago
    worker.wipe(0).result()
    assert worker.process.pid != stopped and worker.alive
    worker.close()
    assert not worker.alive
