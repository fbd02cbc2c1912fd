"""The codec worker: thread and process give the same results, in order, and a process can die."""

import os
import signal
import time

import numpy as np
import pytest
import torch

from speechgpt2.engine import codec_worker
from speechgpt2.engine.codec_worker import AudioChunk, BatchedCodec, CodecProcess
from speechgpt2.engine.config import EngineConfig
from speechgpt2.engine.engine import Engine
from speechgpt2.types import Error, Turn
from tests import needs
from tests.engine.test_engine import SHORT
from tests.engine.tiny import PATCH, Clock, audio_of, events, models, noise, say, talk

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
    for (method, *arguments), answer in zip(asked, answers, strict=True):
        ours, theirs = getattr(here, method)(*arguments), answer.result()
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


def test_engine_with_codec_process_equals_thread_and_reports_its_death():
    codec, lm = models()
    near, far = (Engine(codec, lm, EngineConfig(slots=8, context=256, codec_process=apart), Clock())
                 for apart in (False, True))  # fmt: skip
    replies = []
    for engine in (near, far):
        session = engine.open(SHORT)
        say(session, noise(0.7))
        session.respond()
        replies.append(audio_of(talk(engine, [session])[session]))
    assert np.array_equal(*replies) and replies[0].any()
    far.start()
    assert far.alive
    far.core.runner.codec.process.kill()
    far.core.runner.codec.process.join()
    assert not far.alive
    session.add_turn(Turn.user("Hello"))
    session.respond()
    found, end = [], time.monotonic() + 10
    while not found and time.monotonic() < end:
        found = events(session)
        time.sleep(0.01)
    assert isinstance(found[-1], Error)
    far.close()
    with pytest.raises(RuntimeError, match="ended"):
        far.core.runner.codec.wipe(0).result()


@needs.condition(hasattr(signal, "SIGSTOP"), "the system has no SIGSTOP")
def test_process_that_does_not_answer_is_ended(monkeypatch):
    """A stopped process is as good as dead: calls fail within the time limit instead of waiting for ever."""
    monkeypatch.setattr(codec_worker, "MAX_SILENCE", 0.5)
    monkeypatch.setattr(codec_worker, "WATCH_INTERVAL", 0.1)
    worker = CodecProcess(models()[0], SLOTS, PATCH)
    worker.wipe(0).result()
    os.kill(worker.process.pid, signal.SIGSTOP)
    with pytest.raises(RuntimeError, match="process has ended"):
        worker.wipe(0).result()
    worker.process.join(5)
    assert not worker.alive
    worker.close()
