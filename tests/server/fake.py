"""A dialogue that needs no model: it hears loudness, and answers with words and a tone at the pace of speech.

What it "remembers" is in the open, so that tests can see what an interruption took from it.
"""

import asyncio
import itertools

import numpy as np

from speechgpt2.errors import UserError
from speechgpt2.server.limits import Refused
from speechgpt2.server.partner import ReplyStarted, TurnTaken
from speechgpt2.types import (
    SAMPLE_RATE,
    AudioDelta,
    Error,
    Interrupted,
    SpeechStarted,
    SpeechStopped,
    Text,
    TextDelta,
    ToolCall,
    Transcript,
    TurnDone,
)

PATCH = SAMPLE_RATE * 120 // 1000
LOUD = 0.03
LEAD = 0.24  # seconds of speech ahead of its playback


class FakeModel:
    voices, styles = ["default"], []

    def __init__(self, slots=4):
        self.slots, self.dialogues, self.closed = slots, [], False

    @property
    def open_dialogues(self):
        return [dialogue for dialogue in self.dialogues if not dialogue.closed]

    def open(self, session, paced=True):
        if len(self.open_dialogues) >= self.slots:
            raise Refused("full")
        self.dialogues.append(FakeDialogue(session, paced))
        return self.dialogues[-1]

    def watch(self, observe):
        observe(0.02)

    def close(self):
        self.closed = True


class FakeDialogue:
    def __init__(self, session, paced):
        self.session, self.paced, self.notes = session, paced, ()
        self.memory = {}  # number -> what was said; a reply's words are those that were heard
        self.closed = False
        self._numbers, self._queue = itertools.count(1), asyncio.Queue()
        self._heard = self._turn_start = 0
        self._speech = self._silence = 0  # samples, in a row
        self._talking, self._reply, self._number = False, None, 0
        self._began, self._sent = 0.0, 0

    # what is asked

    def configure(self, session, notes):
        if session.instructions == "refuse me":
            raise UserError("these instructions cannot be followed")
        self.session, self.notes = session, notes

    def hear(self, pcm):
        for start in range(0, len(pcm), 480):
            self._hear(pcm[start : start + 480])

    def commit(self):
        if self._heard == self._turn_start:
            raise UserError("nothing was heard")
        self._take(self._turn_start)

    def clear(self):
        self._talking, self._turn_start = False, self._heard

    def remember(self, turn):
        number, segment = next(self._numbers), turn.segments[0]
        said = segment.text if isinstance(segment, Text) else f"{len(segment.pcm) / SAMPLE_RATE:.1f} s of speech"
        self.memory[number] = f"{turn.role}: {said}"
        return number

    def respond(self, session, read_aloud=None):
        if self._reply is not None:
            raise UserError("a reply is under way")
        self._number = next(self._numbers)
        self._reply = asyncio.ensure_future(self._answer(self._number, session, read_aloud))
        return self._number

    def interrupt(self):
        if self._reply is None:
            return
        self._reply.cancel()
        self._reply = None
        heard = int(min(self._sent, (self._now() - self._began) * SAMPLE_RATE)) if self._sent else 0
        self.truncate(self._number, heard)
        self._say(Interrupted(heard), TurnDone("interrupted"))

    def truncate(self, number, heard):
        words = self.memory[number].split(" ")
        self.memory[number] = " ".join(words[: 1 + heard // PATCH])

    def forget(self, number):
        del self.memory[number]

    async def events(self):
        while (event := await self._queue.get()) is not None:
            yield event

    def close(self):
        self.closed = True
        if self._reply is not None:
            self._reply.cancel()
        self._queue.put_nowait(None)

    # what it does

    def _say(self, *events):
        for event in events:
            self._queue.put_nowait(event)

    def _now(self):
        return asyncio.get_running_loop().time()

    def _hear(self, pcm):
        self._heard += len(pcm)
        detection = self.session.audio.input.turn_detection
        if detection is None:
            return
        loud = float(np.sqrt(np.mean(pcm**2))) > LOUD
        self._speech = self._speech + len(pcm) if loud else 0
        self._silence = 0 if loud else self._silence + len(pcm)
        if not self._talking and self._speech >= 0.06 * SAMPLE_RATE:
            self._talking, self._turn_start = True, self._heard - self._speech
            self._say(SpeechStarted(self._turn_start))
            if detection.interrupt_response:
                self.interrupt()
        patience = getattr(detection, "silence_duration_ms", 300) * SAMPLE_RATE // 1000
        if self._talking and self._silence >= patience:
            self._talking = False
            self._say(SpeechStopped(self._heard - self._silence))
            self._take(self._turn_start)
            if detection.create_response and self._reply is None:
                self.respond(self.session)

    def _take(self, start):
        number = next(self._numbers)
        self.memory[number] = f"user: {(self._heard - start) / SAMPLE_RATE:.1f} s of speech"
        self._say(TurnTaken(number, start, self._heard))
        self._turn_start = self._heard

    async def _answer(self, number, session, read_aloud):
        """A word for each patch."""
        asked = list(self.memory.values())[-1].partition(": ")[2] if self.memory else ""
        text = read_aloud or f"you said {asked} and I answer that in some words more than you may want to hear"
        paced = self.paced or "slow" in asked
        words = text.split(" ")[: session.max_output_tokens if session.max_output_tokens != "inf" else None]
        self.memory[number], self._sent, self._began = "assistant:", 0, self._now()
        if read_aloud is None:
            self._say(ReplyStarted(number))
        if asked.endswith("of speech"):
            self._say(Transcript(asked))
        if "fail" in asked:
            self._say(Error("the model stumbled"))
        elif "call" in asked:
            self._say(ToolCall("weather", '{"city": "Paris"}'), TurnDone("stop"))
        else:
            for place, word in enumerate(words):
                self._say(TextDelta(word if not place else f" {word}"))
                self.memory[number] += f" {word}"
                if session.speaks:
                    await self._speak(place, paced)
            self._say(TurnDone("stop" if len(words) == len(text.split(" ")) else "length"))
        self._reply = None

    async def _speak(self, place, paced):
        time = np.arange(PATCH) / SAMPLE_RATE
        self._say(AudioDelta((0.2 * np.sin(2 * np.pi * (300 + 40 * place) * time)).astype(np.float32)))
        self._sent += PATCH
        ahead = self._began + self._sent / SAMPLE_RATE - self._now()
        await asyncio.sleep(max(0.0, ahead - LEAD) if paced else 0)
