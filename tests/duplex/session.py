"""A fake engine session: it checks calls as a session does, records them, and emits given events."""

import asyncio

import numpy as np

from speechgpt2.duplex.voice_activity import BLOCK_SAMPLES, VadFrame
from speechgpt2.errors import UserError
from speechgpt2.types import AudioDelta, Interrupted, ReplyDone


class Session:
    backlogged = saves = False

    def __init__(self):
        self.calls, self.audio, self.turn = [], {}, 0
        self.numbers, self.speaking, self.reply, self.tentative = 0, False, None, False
        self.queue = asyncio.Queue()

    @property
    def replying(self):
        return self.reply is not None

    @property
    def user_speaking(self):
        return self.speaking

    def must(self, condition, otherwise):
        if not condition:
            raise UserError(otherwise)

    def number(self):
        self.numbers += 1
        return self.numbers

    def start_turn(self):
        self.must(not self.speaking and not self.replying, "not now")
        self.calls.append("start_turn")
        self.speaking, self.tentative, self.turn = True, False, self.number()
        self.audio[self.turn] = []
        return self.turn

    def append_audio(self, pcm):
        self.must(self.speaking, "no active user turn")
        self.audio[self.turn].append(pcm)

    def end_turn(self):
        self.must(self.speaking, "no active user turn")
        self.calls.append("end_turn")
        self.speaking, self.tentative = False, True

    def rollback(self):
        self.must(self.tentative, "nothing to roll back")
        self.calls.append("rollback")
        self.silence()
        self.speaking, self.tentative = True, False

    def discard_turn(self):
        self.must(self.speaking, "no active user turn")
        self.calls.append("discard_turn")
        self.speaking = False

    def add_turn(self, turn):
        self.must(not self.speaking, "the user speaks")
        self.calls.append(("add_turn", turn))
        self.tentative = False
        return self.number()

    def respond(self, options=None):
        self.must(not self.replying and not self.speaking, "not now")
        self.calls.append("respond")
        self.reply = self.number()
        return self.reply

    def interrupt(self, played):
        self.must(self.replying, "no reply")
        self.calls.append(("interrupt", played))
        self.silence()
        self.tentative = False
        self.queue.put_nowait(Interrupted(played))
        self.queue.put_nowait(ReplyDone("interrupted"))

    def truncate(self, number, played):
        self.calls.append(("truncate", number, played))
        self.tentative = False

    def delete_turn(self, number):
        self.calls.append(("delete_turn", number))
        self.tentative = False

    def configure(self, settings):
        self.calls.append(("configure", settings))

    def save(self):
        self.calls.append("save") if self.saves else None

    async def events(self):
        while (event := await self.queue.get()) is not None:
            if isinstance(event, ReplyDone):
                self.reply = None
            yield event

    def close(self):
        self.queue.put_nowait(None)

    # what tests do

    def silence(self):
        self.reply = None
        while not self.queue.empty():
            self.queue.get_nowait()

    def tell(self, *events):
        for event in events:
            self.queue.put_nowait(event)

    def audio_of(self, turn):
        return np.concatenate([np.zeros(0, np.float32), *self.audio[turn]])


class LevelVad:
    """A fake detector: loud blocks are speech."""

    def __init__(self):
        self.rest, self.at = np.zeros(0, np.float32), 0

    def push(self, pcm):
        self.rest = np.concatenate([self.rest, pcm])
        while len(self.rest) >= BLOCK_SAMPLES:
            block, self.rest = self.rest[:BLOCK_SAMPLES], self.rest[BLOCK_SAMPLES:]
            self.at += BLOCK_SAMPLES
            level = float(np.sqrt(np.mean(np.square(block))))
            at_16k = np.interp(np.arange(0, BLOCK_SAMPLES, 1.5), np.arange(BLOCK_SAMPLES), block).astype(np.float32)
            yield VadFrame(self.at, 0.95 if level > 0.01 else 0.02, at_16k)


def audio(seconds, level=0.1):
    return AudioDelta(level * np.random.default_rng(0).standard_normal(round(seconds * 24_000)).astype(np.float32))
