"""Endpointing: whose turn it is. A pure state machine over probabilities of speech and time.

It holds no audio and calls nothing.

              voice                  silence of `speculate`            silence enough
    silent ──────────► speaking ─────────────────────────► pausing ──────────────────► silent
            TurnStarted   ▲              TurnPaused             │         TurnEnded
                          └─────────────────────────────────────┘
                                    voice: TurnResumed

At `TurnPaused` a speculative reply is begun. `TurnResumed` rolls it back, `TurnEnded` makes it count. How much silence
is enough depends on `ending`:

- *fixed*: `silence`, whatever was said;
- *semantic*: `speculate` alone if the model, which already replies speculatively, finds that what it heard is whole,
  and `patience` if it does not. As long as it has not told, or if it never does, `silence` holds.

While the model is heard speaking, a voice must go on for `interrupt`: an "mm-hm", 嗯 or a cough is shorter and is
ignored. The price is that barge-in is noticed so much later. Otherwise `onset` is enough.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from speechgpt2.errors import UserError
from speechgpt2.types import SAMPLE_RATE

HYSTERESIS = 0.15  # of the probability: a voice goes on until it is this far below the threshold
MAX_GAP = 200  # milliseconds: a burst of voice with a longer gap in it starts no turn


@dataclass(frozen=True)
class EndpointerSettings:
    """How turns are detected. Times are in milliseconds.

    Attributes:
        ending: How the end of a turn is decided; see the module's text.
        threshold: Probability of speech from which a block counts as voice.
        onset: Voice after which a turn starts.
        prefix: Audio before the onset that belongs to the turn.
        speculate: Silence after which a turn pauses.
        silence: Silence after which a turn ends.
        patience: Silence after which an incomplete turn ends.
        interrupt: Voice after which a reply is interrupted.
        answer: Whether the end of a turn is answered.
        interruptible: Whether a voice interrupts a reply. If not, it is ignored until the reply has been played.
        idle: Silence on both sides after which `UserIdle` is told; None: never.

    Raises:
        UserError: A value is out of range.
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
class TurnStarted:
    """The user's turn started at sample `at`. Its audio begins `prefix` samples before now."""

    at: int
    prefix: int


@dataclass(frozen=True)
class TurnPaused:
    """The user may have finished."""


@dataclass(frozen=True)
class TurnResumed:
    """The user had not finished."""


@dataclass(frozen=True)
class TurnEnded:
    """The user has finished; the voice ended at sample `at`."""

    at: int


@dataclass(frozen=True)
class BargeIn:
    """The user interrupts the model. `TurnStarted` follows."""


@dataclass(frozen=True)
class UserIdle:
    """Neither side has spoken since sample `since`."""

    since: int


EndpointEvent = TurnStarted | TurnPaused | TurnResumed | TurnEnded | BargeIn | UserIdle


class Endpointer:
    """Follows one microphone from sample `at` on. `set_model_state` tells what the model does."""

    def __init__(self, settings: EndpointerSettings, at: int = 0):
        self.settings = settings
        self.user: Literal["silent", "speaking", "pausing"] = "silent"
        self.model: Literal["quiet", "thinking", "speaking"] = "quiet"
        self._now = self._quiet_since = at
        self._began: int | None = None  # where a burst of voice began that may start or resume a turn
        self._voiced = 0  # samples of voice in it
        self._burst_end = at  # where its latest voice ended
        self._last_voice = at  # where the latest voice of the turn ended
        self._complete: bool | None = None  # whether the model finds the turn complete

    def set_model_state(self, model: Literal["quiet", "thinking", "speaking"]) -> None:
        """Set whether the model generates a reply, is heard, or neither."""
        if model == "quiet" and self.model != "quiet":
            self._quiet_since = self._now
        self.model = model

    def set_complete(self, complete: bool) -> None:
        """Set whether the model finds the turn up to the pause complete."""
        if self.user == "pausing":
            self._complete = complete

    def reset(self) -> None:
        """End the turn that may be going on, for reasons other than silence."""
        self.user, self._began, self._complete = "silent", None, None
        self._quiet_since = self._now

    def step(self, at: int, probability: float) -> Iterator[EndpointEvent]:
        """Take a block of the microphone.

        Args:
            at: The sample at which it ends.
            probability: Of speech in it.

        Yields:
            What follows from it, in order.
        """
        size, self._now = at - self._now, at
        going_on = self.user == "speaking" or self._began is not None
        voice = probability >= self.settings.threshold - (HYSTERESIS if going_on else 0.0)
        self._follow_burst(voice, size)
        if self.user == "silent":
            yield from self._silent()
        elif self.user == "speaking":
            yield from self._speaking(voice)
        else:
            yield from self._pausing()

    def _follow_burst(self, voice: bool, size: int) -> None:
        """Follow a burst of voice that may start or resume a turn."""
        if voice:
            if self._began is None:
                self._began, self._voiced = self._now - size, 0
            self._voiced += size
            self._burst_end = self._now
        elif self._now - self._burst_end > samples(MAX_GAP):
            self._began = None

    def _silent(self) -> Iterator[EndpointEvent]:
        s = self.settings
        if self.model != "quiet" and not s.interruptible:
            self._began = None
        if self._began is None:
            yield from self._idle()
            return
        if self._voiced < samples(s.interrupt if self.model == "speaking" else s.onset):
            return
        if self.model != "quiet":
            yield BargeIn()
        began, self._began = self._began, None
        self.user, self._last_voice = "speaking", self._burst_end
        yield TurnStarted(began, self._now - began + samples(s.prefix))

    def _speaking(self, voice: bool) -> Iterator[EndpointEvent]:
        if voice:
            self._last_voice = self._now
        elif self._now - self._last_voice >= samples(self.settings.speculate):
            self.user, self._complete, self._began = "pausing", None, None
            yield TurnPaused()
            yield from self._pausing()

    def _pausing(self) -> Iterator[EndpointEvent]:
        if self._began is not None and self._voiced >= samples(self.settings.onset):
            self.user, self._last_voice, self._began = "speaking", self._burst_end, None
            yield TurnResumed()
        elif self._began is None and self._now - self._last_voice >= samples(self._silence_needed()):
            end = self._last_voice
            self.reset()
            yield TurnEnded(end)

    def _silence_needed(self) -> int:
        """Milliseconds of silence after which the turn is over."""
        s = self.settings
        if s.ending == "fixed" or self._complete is None:
            return max(s.silence, s.speculate)
        return s.speculate if self._complete else max(s.patience, s.speculate)

    def _idle(self) -> Iterator[EndpointEvent]:
        idle = self.settings.idle
        if idle is not None and self.model == "quiet" and self._now - self._quiet_since >= samples(idle):
            since, self._quiet_since = self._quiet_since, self._now
            yield UserIdle(since)


def samples(milliseconds: int) -> int:
    """Samples at 24 kHz."""
    return milliseconds * SAMPLE_RATE // 1000
