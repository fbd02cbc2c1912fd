"""The engine on a device: the dialogues of the CPU, captured steps, and no waiting for the host in between."""

import threading
from contextlib import contextmanager
from copy import deepcopy

import numpy as np
import pytest
import torch

from speechgpt2.duplex.protocol import SessionSettings
from speechgpt2.engine import batch_rows
from speechgpt2.engine.codec_worker import BatchedCodec
from speechgpt2.engine.config import EngineConfig
from speechgpt2.engine.engine import Engine
from speechgpt2.nn.cuda_graph import GraphedFunction
from speechgpt2.types import ReplyDone, Turn
from tests import needs
from tests.engine.results import audio_of, context_of, events, reason
from tests.engine.tiny import SHORT, Clock, answer, models, noise, run, say, talk, tiny_codec, tiny_lm


def engine_on(device, lm=None, **config):
    """An engine of copies on the device."""
    codec, lm = tiny_codec(), lm or models()[1]
    sizes = EngineConfig(**{"slots": 4, "context": 256, **config})
    return Engine(deepcopy(codec).to(device), deepcopy(lm).to(device), sizes, Clock())


def agreement(a, b):
    """How many patches two contexts begin with that are the same."""
    length = min(a.text.shape[1], b.text.shape[1])
    same = (a.text[0, :length] == b.text[0, :length]) & (a.codes[0, :length] == b.codes[0, :length]).flatten(1).all(1)
    return length if bool(same.all()) else int(same.long().argmin())


def assert_agree(there, here):
    """In float32 the results of two devices differ in their last bits: a nearly equal score or code may swap, and the
    rest of the conversation is another one from there on.
    """
    length = here.text.shape[1]
    assert agreement(there, here) >= 0.8 * length, f"{agreement(there, here)} of {length} patches agree"


def two_turns(device, lm=None):
    """A spoken turn beside another session's, and a typed one: audio, context and reason of both replies."""
    engine = engine_on(device, lm)
    first, second = (engine.open(SessionSettings(max_patches=count, seed=5)) for count in (14, 8))
    for session, pcm in ((first, noise(0.5, 1)), (second, noise(0.7, 2))):
        say(session, pcm)
        session.respond()
    found = talk(engine, [first, second])
    first.add_turn(Turn.user(text="Hello"))
    first.respond()
    found[first] += talk(engine, [first])[first]
    results = [(audio_of(found[s]), context_of(s), reason(found[s])) for s in (first, second)]
    engine.close()
    return results


@pytest.mark.parametrize("kind", ["released", "chain of modality", "drafted"])
def test_conversation_is_that_of_the_cpu(device, kind):
    options = {"chain of modality": {"chain_of_modality": True}, "drafted": {"draft_tokens": 3}}.get(kind)
    lm = None if options is None else tiny_lm(**{"chain_of_modality": True, **options})
    here, there = two_turns(torch.device("cpu"), lm), two_turns(device, lm)
    for (pcm, patches, why), (pcm_, patches_, why_) in zip(there, here, strict=True):
        assert_agree(patches, patches_)
        if agreement(patches, patches_) == patches_.text.shape[1]:
            assert why == why_ and pcm.shape == pcm_.shape
            assert np.abs(pcm - pcm_).max(initial=0) <= 0.02 * np.abs(pcm_).max(initial=1e-3)


def test_conversation_is_the_same_again(device):
    """Bit for bit on the same device."""
    for (pcm, patches, _), (pcm_, patches_, _) in zip(two_turns(device), two_turns(device), strict=True):
        assert torch.equal(patches.text, patches_.text) and torch.equal(patches.codes, patches_.codes)
        assert np.array_equal(pcm, pcm_)


class Direct:
    """Stands in for a captured function: the function itself."""

    def __init__(self, function, *idle):
        self.function = function

    @torch.inference_mode()
    def __call__(self, *arguments):
        return self.function(*arguments)


def test_captured_steps_equal_the_functions(device, monkeypatch):
    captured = two_turns(device)
    monkeypatch.setattr(batch_rows, "GraphedFunction", Direct)
    for (pcm, patches, _), (pcm_, patches_, _) in zip(captured, two_turns(device), strict=True):
        assert_agree(patches, patches_)
        if torch.equal(patches.codes, patches_.codes):
            np.testing.assert_allclose(pcm, pcm_, atol=0.02)


def test_interrupted_reply_is_cut(device):
    """Rewinds the row: replies that differ only in what was not played lead to the same conversation."""
    contexts = []
    for extra in (0, 3):
        engine = engine_on(device)
        session = engine.open(SessionSettings(max_patches=25, seed=5, paced=False))
        say(session, noise(0.5, 1))
        session.respond()
        received = []
        while len(audio_of(received)) < (2 + extra) * 2880 and not any(isinstance(e, ReplyDone) for e in received):
            engine.step()
            received += events(session)
        assert len(audio_of(received)) >= 2 * 2880
        session.interrupt(2 * 2880)
        run(engine)
        events(session)
        answer(engine, session, noise(0.4, 2))
        contexts.append(context_of(session))
        engine.close()
    assert torch.equal(contexts[0].text, contexts[1].text) and torch.equal(contexts[0].codes, contexts[1].codes)


def test_rolled_back_turn_equals_an_uninterrupted_one(device):
    pcm, contexts = noise(1.2, 7), []
    for pauses in (False, True):
        engine = engine_on(device)
        session = engine.open(SHORT)
        session.start_turn()
        session.append_audio(pcm[: 5 * 2880])
        if pauses:
            session.end_turn()
            session.respond()
            for _ in range(6):
                engine.step()
            session.rollback()
        session.append_audio(pcm[5 * 2880 :])
        session.end_turn()
        session.respond()
        talk(engine, [session])
        contexts.append(context_of(session))
        engine.close()
    assert_agree(contexts[1], contexts[0])


def test_slot_is_wiped_before_reuse(device):
    engine = engine_on(device, slots=1)
    results = []
    for seed in (1, 2, 1):
        session = engine.open(SHORT)
        found = answer(engine, session, noise(0.5, seed))
        results.append((audio_of(found), context_of(session)))
        session.close()
        engine.step()
    assert torch.equal(results[0][1].codes, results[2][1].codes) and np.array_equal(results[0][0], results[2][0])
    engine.close()


def test_long_prompt_is_prefilled_once(device):
    """The second session copies the keys and values of the first."""
    engine = engine_on(device)
    settings = SessionSettings(max_patches=10, seed=3, instructions="Hello there, what is the weather like? " * 3)
    contexts = []
    for _ in range(2):
        session = engine.open(settings)
        answer(engine, session, noise(0.4, 4))
        contexts.append(context_of(session))
    assert torch.equal(contexts[0].codes, contexts[1].codes) and torch.equal(contexts[0].text, contexts[1].text)
    engine.close()


# on CUDA only: graphs


@contextmanager
def no_synchronisation(device):
    """An operation for which the host waits is an error."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_no_step_waits_for_the_host(device, monkeypatch):
    """The mode counts for all threads, so the codec's thread, which brings audio to the host, waits meanwhile."""
    lock, calls = threading.RLock(), []

    class Guarded(GraphedFunction):
        def __call__(self, *arguments):
            calls.append(self)
            with lock, no_synchronisation(device):
                return super().__call__(*arguments)

    def alone(method):
        def call(*arguments):
            with lock:
                return method(*arguments)

        return call

    monkeypatch.setattr(batch_rows, "GraphedFunction", Guarded)
    for name in ("encode", "decode"):
        monkeypatch.setattr(BatchedCodec, name, alone(getattr(BatchedCodec, name)))
    engine = engine_on(device)
    session = engine.open(SHORT)
    found = answer(engine, session, noise(0.5, 1))
    engine.close()
    assert len(audio_of(found)) and bool(calls) == (device.type == "cuda")


@needs.device("cuda")
def test_waiting_for_the_host_is_noticed():
    device = torch.device("cuda")
    with pytest.raises(RuntimeError), no_synchronisation(device):
        torch.ones(1, device=device).item()


@needs.device("cuda")
def test_replay_computes_with_new_values():
    kept = torch.zeros(3, device="cuda")

    def add(x, factor):
        kept.add_(x * factor)
        return kept * 2

    graphed = GraphedFunction(add, [(torch.zeros(3, device="cuda"), factor) for factor in (2, 4)])
    assert not kept.any()  # an idle call changes nothing
    first = graphed(torch.ones(3, device="cuda"), 2)
    second = graphed(torch.ones(3), 2)  # from the host
    torch.cuda.synchronize()
    assert first.tolist() == [4.0] * 3 and second.tolist() == [8.0] * 3 and kept.tolist() == [4.0] * 3
    with pytest.raises(ValueError, match="no graph"):
        graphed(torch.ones(3, device="cuda"), 3)


@needs.device("cuda")
def test_capture_refuses_to_wait_for_the_host():
    with pytest.raises(RuntimeError):
        GraphedFunction(lambda x: x * 2 if bool(x.any()) else x, [(torch.zeros(3, device="cuda"),)])
