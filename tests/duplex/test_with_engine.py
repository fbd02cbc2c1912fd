"""A dialogue on a real engine with tiny random models."""

import asyncio

import numpy as np
import pytest
import torch

from speechgpt2.dsp.delivery import source_samples
from speechgpt2.duplex.dialogue import Dialogue
from speechgpt2.duplex.protocol import DialogueSettings, ReplyStarted, ServerVad, SessionSettings
from speechgpt2.types import AudioDelta, Interrupted, ReplyDone, SpeechStarted
from tests.duplex.session import LevelVad
from tests.engine.results import context_of
from tests.engine.tiny import PATCH, models, noise, say, talk, tiny_engine

BLOCK = 768
SETTINGS = DialogueSettings(ServerVad(silence_ms=512, prefix_ms=320), speculate_ms=192, interrupt_ms=288)


class Talk:
    """A microphone, a dialogue and an engine that makes steps while the microphone runs."""

    def __init__(self, steps=4, speed=1.0):
        self.engine, self.events, self.steps = tiny_engine(), [], steps
        self.session = self.engine.open(SessionSettings(seed=3, max_patches=20, speed=speed))
        self.dialogue = Dialogue(self.session, SETTINGS, LevelVad, self.engine.clock)
        self.reader = asyncio.create_task(self.read())

    async def read(self):
        async for event in self.dialogue.events():
            self.events.append(event)

    async def play(self, pcm):
        for start in range(0, len(pcm), BLOCK):
            piece = pcm[start : start + BLOCK]
            self.dialogue.append_audio(piece)
            for _ in range(self.steps):
                self.engine.step()
                await asyncio.sleep(0)
            self.engine.clock.now += len(piece) / 24_000
        for _ in range(5):
            await asyncio.sleep(0)

    async def close(self):
        self.dialogue.close()
        await asyncio.wait_for(self.reader, 5)
        self.engine.close()


def voice(blocks, seed=0):
    return np.where(noise(blocks * BLOCK / 24_000 + 1, seed)[: blocks * BLOCK] >= 0, 0.2, -0.2).astype(np.float32)


def silence(blocks):
    return np.zeros(blocks * BLOCK, np.float32)


def the_same(a, b):
    return torch.equal(a.text, b.text) and torch.equal(a.codes, b.codes)


def kinds(found):
    return [type(event).__name__ for event in found if not isinstance(event, AudioDelta)]


def answered_directly(pcm):
    """What a session remembers that hears `pcm` as one turn, and the sound of its reply."""
    engine = tiny_engine()
    session = engine.open(SessionSettings(seed=3, max_patches=20))
    say(session, pcm)
    session.respond()
    found = talk(engine, [session])[session]
    return context_of(session), np.concatenate([event.pcm for event in found if isinstance(event, AudioDelta)])


def test_detected_turn_equals_the_spoken_one():
    async def run():
        talk = Talk()
        said = [silence(20), voice(20), silence(90)]
        for piece in said:
            await talk.play(piece)
        assert kinds(talk.events)[:3] == ["SpeechStarted", "SpeechStopped", "UserTurnCommitted"]
        assert talk.events[-1].reason in ("stop", "length")
        remembered, reply = answered_directly(np.concatenate(said)[10 * BLOCK : 46 * BLOCK])
        assert the_same(context_of(talk.session), remembered)
        pcm = np.concatenate([event.pcm for event in talk.events if isinstance(event, AudioDelta)])
        assert np.array_equal(pcm, reply)
        await talk.close()

    asyncio.run(run())


def test_rolled_back_reply_leaves_no_trace():
    async def run():
        talk = Talk()
        said = [silence(20), voice(20), silence(10), voice(20, seed=1), silence(90)]
        for piece in said:
            await talk.play(piece)
        assert kinds(talk.events).count("ReplyStarted") == kinds(talk.events).count("ReplyDone") == 1
        remembered, _ = answered_directly(np.concatenate(said)[10 * BLOCK : 76 * BLOCK])
        assert the_same(context_of(talk.session), remembered)
        await talk.close()

    asyncio.run(run())


@pytest.mark.parametrize("speed", [1.0, 0.6, 1.5])
def test_barge_in_keeps_only_what_was_played(speed):
    async def run():
        talk = Talk(speed=speed)
        await talk.play(np.concatenate([voice(20), silence(16)]))
        while not any(isinstance(event, AudioDelta) for event in talk.events):
            await talk.play(silence(1))
        await talk.play(silence(8))
        before = context_of(talk.session)
        await talk.play(0.5 / 0.2 * voice(12))  # louder than the reply can be
        interrupted = next(event for event in talk.events if isinstance(event, Interrupted))
        place = talk.events.index(interrupted)
        assert talk.events[place + 1] == ReplyDone("interrupted")
        assert isinstance(talk.events[place + 2], SpeechStarted)
        assert not any(isinstance(event, AudioDelta) for event in talk.events[place:])
        made = sum(len(event.pcm) for event in talk.events if isinstance(event, AudioDelta))
        assert PATCH / speed <= interrupted.played < made

        after, lm = context_of(talk.session), models()[1]
        speech = [(p.codes[0, :, 0, 0] != lm.config.no_speech) for p in (before, after)]
        reply = int(torch.nonzero(before.text[0] == lm.prompt.special_ids.speech_start).flatten()[1])
        kept = 0
        while bool(speech[1][reply + 1 + kept]):
            assert torch.equal(after.codes[0, reply + 1 + kept], before.codes[0, reply + 1 + kept])
            kept += 1
        generated = source_samples(interrupted.played, speed) - models()[0].config.delay
        assert kept == generated // PATCH > 0
        assert ReplyStarted in map(type, talk.events)
        await talk.close()

    asyncio.run(run())
