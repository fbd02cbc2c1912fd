"""A fake engine and dialogue: loud audio is speech, and replies are words and tones in real time.

The session's history is public, so that tests can check what an interruption removes.
"""

import asyncio
import itertools
import re
import time

import numpy as np

from speechgpt2.duplex.protocol import EngineFull, EngineStats, ReplyOptions, ReplyStarted, UserTurnCommitted
from speechgpt2.errors import UserError
from speechgpt2.sessions.entries import Header, PatchBlock, TurnBlock
from speechgpt2.types import (
    SAMPLE_RATE,
    AudioDelta,
    Error,
    Interrupted,
    ReplyDone,
    SpeechStarted,
    SpeechStopped,
    Text,
    TextDelta,
    ToolCall,
    Transcript,
)

PATCH = SAMPLE_RATE * 120 // 1000
NO_PATCHES = PatchBlock(np.zeros(0, np.int64), np.zeros((0, 3, 3), np.int64), np.zeros(0, bool))
LOUD = 0.03
LEAD = 0.24  # seconds of speech ahead of its playback


class FakeEngine:
    """See `speechgpt2.duplex.protocol.Engine`."""

    reads_aloud = calls_tools = True

    def __init__(self, slots=4, voices=()):
        self.voices = voices
        self.slots, self.sessions, self.closed, self.alive = slots, [], False, True

    @property
    def open_sessions(self):
        return [session for session in self.sessions if not session.closed]

    def open(self, settings, saved=None, writer=None):
        check_voice(settings, self.voices)
        if len(self.open_sessions) >= self.slots:
            raise EngineFull
        self.sessions.append(FakeSession(settings))
        return self.sessions[-1]

    def encode(self, pcm):
        return np.zeros((len(pcm) // 960, 3), np.int64)

    def stats(self):
        return EngineStats(self.slots, len(self.open_sessions), 0, 1, 0.02)

    def add_step_observer(self, observer):
        observer(0.02)

    def start(self):
        pass

    def close(self, drain=0.0):
        self.closed = True


class SavingEngine(FakeEngine):
    """Saves its sessions: of each turn its text. A session that goes on remembers them."""

    def session_header(self, id, model, owner):
        return Header(id, "engine", model, "fake", "fake", owner, time.time(), 3, 3, 1024)

    def open(self, settings, saved=None, writer=None):
        session = super().open(settings)
        session.writer = writer
        if saved is not None:
            session.memory = {number: turn.text for number, turn in saved.turns.items()}
            session.numbers = itertools.count(saved.last_number + 1)
        return session


def check_voice(settings, voices):
    """What reaches an engine is one of its voices."""
    assert settings.voice in (None, "default", *(voice.name for voice in voices)), settings.voice


class FakeSession:
    """See `speechgpt2.duplex.protocol.Session`."""

    def __init__(self, settings):
        self.settings = settings
        self.memory = {}  # number -> text; of a reply the words that were played
        self.closed = self.backlogged = False
        self.options = None  # of the latest reply
        self.started = lambda number: None  # called with the number of a reply that starts
        self.writer = None  # where it is saved
        self.numbers, self._queue = itertools.count(1), asyncio.Queue()
        self._reply, self._number = None, 0
        self._began, self._sent = 0.0, 0

    @property
    def replying(self):
        return self._reply is not None

    def configure(self, settings):
        if settings.instructions == "refuse me":
            raise UserError("these instructions cannot be followed")
        self.settings = settings

    def add_speech(self, samples):
        number = next(self.numbers)
        self.memory[number] = f"user: {samples / SAMPLE_RATE:.1f} s of speech"
        self._save(number, "user")
        return number

    def add_turn(self, turn):
        number, segment = next(self.numbers), turn.segments[0]
        if isinstance(segment, ToolCall):
            said = f"{segment.name} {segment.arguments}"
        elif isinstance(segment, Text):
            said = segment.text
        else:
            said = f"{len(segment.pcm) / SAMPLE_RATE:.1f} s of speech"
        self.memory[number] = f"{turn.role}: {said}"
        self._save(number, turn.role)
        return number

    def respond(self, options=None):
        if self._reply is not None:
            raise UserError("a reply is under way")
        self._number, self.options = next(self.numbers), options
        self._reply = asyncio.ensure_future(self._answer(self._number, options or ReplyOptions()))
        return self._number

    def interrupt(self, played):
        if self._reply is None:
            raise UserError("there is no reply that could be interrupted")
        self._reply.cancel()
        self._reply = None
        self.truncate(self._number, played)
        self._save(self._number, "assistant")
        self.say(Interrupted(played), ReplyDone("interrupted"))

    def played(self):
        return int(min(self._sent, (self._now() - self._began) * SAMPLE_RATE))

    def truncate(self, number, played):
        words = self.memory.get(number, "assistant:").split(" ")
        self.memory[number] = " ".join(words[: 1 + played // PATCH])

    def delete_turn(self, number):
        self.memory.pop(number, None)

    async def events(self):
        while (event := await self._queue.get()) is not None:
            yield event

    def close(self):
        self.closed = True
        if self._reply is not None:
            self._reply.cancel()
        if self.writer is not None:
            self.writer.close()
        self._queue.put_nowait(None)

    def say(self, *events):
        for event in events:
            self._queue.put_nowait(event)

    def _save(self, number, role):
        if self.writer is not None:
            self.writer.write(TurnBlock(number, role, NO_PATCHES, text=self.memory[number], at=time.time()))

    def _now(self):
        return asyncio.get_running_loop().time()

    async def _answer(self, number, options):
        """Say one word per patch."""
        asked = list(self.memory.values())[-1].partition(": ")[2] if self.memory else ""
        text = options.text or f"you said {asked} and I answer that in some words more than you may want to hear"
        text = f"as told, {options.instructions}: {text}" if options.instructions else text
        words, speak = text.split(" "), self.settings.speak if options.speak is None else options.speak
        self.memory[number], self._sent, self._began = "assistant:", 0, self._now()
        self.started(number)
        if asked.endswith("of speech"):
            self.say(Transcript(asked))
        if "too long" in asked:
            self.say(Error("a turn of 2013 patches is too long", refused=True))
        elif "fail" in asked:
            self.say(Error("the model failed"))
        elif asked.endswith("say nothing") and not options.text:
            self.say(ReplyDone("stop"))
        elif "garbled" in asked and self.settings.tools and not options.text:
            self.say(ToolCall("", '{"name": "weather", "arg'), ReplyDone("stop"))
        elif "call" in asked and (self.settings.tools if options.tools is None else options.tools) and not options.text:
            calls = re.findall(r"call (\w+)(\{.*?\})", asked) or [("weather", '{"city": "Paris"}')]
            self.say(*(ToolCall(*call) for call in calls), ReplyDone("stop"))
        else:
            most = options.max_patches or self.settings.max_patches
            for place, word in enumerate(words[:most]):
                self.say(TextDelta(word if not place else f" {word}"))
                self.memory[number] += f" {word}"
                if speak:
                    await self._speak(place, self.settings.paced or "slow" in asked)
            self._save(number, "assistant")
            self.say(ReplyDone("stop" if len(words) <= most else "length"))
        self._reply = None

    async def _speak(self, place, paced):
        times = np.arange(PATCH) / SAMPLE_RATE
        self.say(AudioDelta((0.2 * np.sin(2 * np.pi * (300 + 40 * place) * times)).astype(np.float32)))
        self._sent += PATCH
        ahead = self._began + self._sent / SAMPLE_RATE - self._now()
        await asyncio.sleep(max(0.0, ahead - LEAD) if paced else 0)


class FakeDialogue:
    """See `speechgpt2.duplex.protocol`; loud audio is speech."""

    def __init__(self, session, settings):
        self.session, self.settings = session, settings
        session.started = lambda number: session.say(ReplyStarted(number))
        self.add_turn, self.respond = session.add_turn, session.respond
        self.truncate, self.delete_turn, self.events, self.close = (
            session.truncate,
            session.delete_turn,
            session.events,
            session.close,
        )
        self._received = self._turn_start = self._speech = self._silence = 0  # samples; the last two in a row
        self._talking = False

    @property
    def backlogged(self):
        return self.session.backlogged

    def configure(self, settings, session_settings):
        if session_settings is not None:
            self.session.configure(session_settings)
        self.settings = settings or self.settings

    def interrupt(self, played):
        if self.session.replying:
            self.session.interrupt(self.session.played() if played is None else played)

    def commit_audio(self):
        if self._received == self._turn_start:
            raise UserError("there is no audio since the last turn")
        self._take(self._turn_start)

    def clear_audio(self):
        self._talking, self._turn_start = False, self._received

    def append_audio(self, pcm):
        for start in range(0, len(pcm), 480):
            self._append(pcm[start : start + 480])

    def _append(self, pcm):
        self._received += len(pcm)
        detection = self.settings.turn_detection
        if detection is None:
            return
        loud = float(np.sqrt(np.mean(pcm**2))) > LOUD
        self._speech = self._speech + len(pcm) if loud else 0
        self._silence = 0 if loud else self._silence + len(pcm)
        if not self._talking and self._speech >= 0.06 * SAMPLE_RATE:
            self._talking, self._turn_start = True, self._received - self._speech
            self.session.say(SpeechStarted(self._turn_start))
            if detection.interrupt_response:
                self.interrupt(None)
        patience = getattr(detection, "silence_ms", 300) * SAMPLE_RATE // 1000
        if self._talking and self._silence >= patience:
            self._talking = False
            self.session.say(SpeechStopped(self._received - self._silence))
            self._take(self._turn_start)
            if detection.create_response and not self.session.replying:
                self.respond()

    def _take(self, start):
        number = self.session.add_speech(self._received - start)
        self.session.say(UserTurnCommitted(number, start, self._received))
        self._turn_start = self._received
