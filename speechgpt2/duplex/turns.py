"""Whose turn it is: a pure state machine over probabilities of speech and time. It holds no sound and calls nobody.

              voice                  silence of `speculate`            silence enough
    silent ──────────► speaking ─────────────────────────► pausing ──────────────────► silent
              Begin       ▲                Pause              │            End
                          └───────────────────────────────────┘
                                      voice: Resume

`Pause` is where an answer is begun in advance; `Resume` takes it back, `End` makes it count. How much is enough:

- *fixed*: `silence` of it, whatever was said;
- *semantic*: `speculate` alone if the model, which has begun to answer in advance, finds that what it heard is whole,
  and `patience` if it does not. As long as it has not said, or if it never does, `silence` holds.

While the model is heard speaking, a voice must go on for `interrupt`: an "mm-hm", 嗯 or a cough is shorter, and passes
unnoticed, at the price that an interruption is noticed so much later. Otherwise `onset` is enough.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from speechgpt2.errors import UserError
from speechgpt2.types import SAMPLE_RATE

HYSTERESIS = 0.15  # a voice that has begun goes on until it is this far below the threshold
GAP = 200  # milliseconds: a longer gap in a sound that is no turn yet, and it was none


@dataclass(frozen=True)
class TurnSettings:
    """How turns are taken; times in milliseconds. `prefix` is heard before a voice was noticed and counts as part of
    its turn. `answer`: the end of a turn is answered; `interruptible`: a voice stops an answer, and otherwise is not
    listened to until the answer has been heard. `idle`: of nobody speaking, upon which `Idle` is told.
    """

    ending: Literal["fixed", "semantic"] = "fixed"
    threshold: float = 0.5
    onset: int = 64
    prefix: int = 300
    speculate: int = 200
    silence: int = 500
    patience: int = 4000
    interrupt: int = 300
    answer: bool = True
    interruptible: bool = True
    idle: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise UserError(f"threshold must be between 0 and 1, not {self.threshold}")
        for name in ("onset", "prefix", "speculate", "silence", "patience", "interrupt"):
            if not 0 <= getattr(self, name) <= 60_000:
                raise UserError(f"{name} must be in 0…60000 milliseconds, not {getattr(self, name)}")
        if self.idle is not None and self.idle <= 0:
            raise UserError(f"idle must be above 0 milliseconds, not {self.idle}")


@dataclass(frozen=True)
class Begin:
    """The user's turn began at sample `at`; `prefix` samples before now it is to be heard from."""

    at: int
    prefix: int


@dataclass(frozen=True)
class Pause:
    """The user may be finished."""


@dataclass(frozen=True)
class Resume:
    """The user was not."""


@dataclass(frozen=True)
class End:
    """The user is; the voice ended at sample `at`."""

    at: int


@dataclass(frozen=True)
class Interrupt:
    """The user breaks in; a `Begin` follows."""


@dataclass(frozen=True)
class Idle:
    """Nobody has spoken since sample `since`."""

    since: int


Action = Begin | Pause | Resume | End | Interrupt | Idle


class TurnTaker:
    """Follows one microphone from sample `at` on. What the other side does is told to it by `model_is`."""

    def __init__(self, settings: TurnSettings, at: int = 0):
        self.settings = settings
        self.user: Literal["silent", "speaking", "pausing"] = "silent"
        self.model: Literal["quiet", "thinking", "speaking"] = "quiet"
        self._now = self._quiet_since = at
        self._began: int | None = None  # where the sound began that may become a turn, or resume one
        self._voiced = 0  # samples of voice in it
        self._last_sound = at  # where its latest voice ended
        self._last_voice = at  # where the turn's did
        self._complete: bool | None = None  # what the model thinks of the turn

    def model_is(self, model: Literal["quiet", "thinking", "speaking"]) -> None:
        """The model answers, or is heard, or neither."""
        if model == "quiet" and self.model != "quiet":
            self._quiet_since = self._now
        self.model = model

    def judge(self, complete: bool) -> None:
        """Whether the model finds what it heard up to the pause a whole turn."""
        if self.user == "pausing":
            self._complete = complete

    def forget(self) -> None:
        """The turn that may be going on is over or none, for reasons that are not heard."""
        self.user, self._began, self._complete = "silent", None, None
        self._quiet_since = self._now

    def step(self, at: int, probability: float) -> Iterator[Action]:
        """A block of the microphone that ends at sample `at`; what follows from it, in order."""
        size, self._now = at - self._now, at
        going_on = self.user == "speaking" or self._began is not None
        voice = probability >= self.settings.threshold - (HYSTERESIS if going_on else 0.0)
        self._note(voice, size)
        if self.user == "silent":
            yield from self._silent()
        elif self.user == "speaking":
            yield from self._speaking(voice)
        else:
            yield from self._pausing()

    def _note(self, voice: bool, size: int) -> None:
        """Follow a sound that may become something."""
        if voice:
            if self._began is None:
                self._began, self._voiced = self._now - size, 0
            self._voiced += size
            self._last_sound = self._now
        elif self._now - self._last_sound > samples(GAP):
            self._began = None

    def _silent(self) -> Iterator[Action]:
        s = self.settings
        if self.model != "quiet" and not s.interruptible:
            self._began = None
        if self._began is None:
            yield from self._idle()
            return
        if self._voiced < samples(s.interrupt if self.model == "speaking" else s.onset):
            return
        if self.model != "quiet":
            yield Interrupt()
        began, self._began = self._began, None
        self.user, self._last_voice = "speaking", self._last_sound
        yield Begin(began, self._now - began + samples(s.prefix))

    def _speaking(self, voice: bool) -> Iterator[Action]:
        if voice:
            self._last_voice = self._now
        elif self._now - self._last_voice >= samples(self.settings.speculate):
            self.user, self._complete, self._began = "pausing", None, None
            yield Pause()
            yield from self._pausing()

    def _pausing(self) -> Iterator[Action]:
        if self._began is not None and self._voiced >= samples(self.settings.onset):
            self.user, self._last_voice, self._began = "speaking", self._last_sound, None
            yield Resume()
        elif self._began is None and self._now - self._last_voice >= samples(self._enough()):
            end = self._last_voice
            self.forget()
            yield End(end)

    def _enough(self) -> int:
        """Milliseconds of silence after which the turn is over."""
        s = self.settings
        if s.ending == "fixed" or self._complete is None:
            return max(s.silence, s.speculate)
        return s.speculate if self._complete else max(s.patience, s.speculate)

    def _idle(self) -> Iterator[Action]:
        idle = self.settings.idle
        if idle is not None and self.model == "quiet" and self._now - self._quiet_since >= samples(idle):
            since, self._quiet_since = self._quiet_since, self._now
            yield Idle(since)


def samples(milliseconds: int) -> int:
    """At 24 kHz."""
    return milliseconds * SAMPLE_RATE // 1000
