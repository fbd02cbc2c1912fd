"""Endpointing: when a user's turn starts and ends. A pure state machine over probabilities of speech and time.

It holds no audio and calls nothing.

              voice                  `speculate_ms` of silence          enough silence
    silent ──────────► speaking ─────────────────────────► pausing ──────────────────► silent
            TurnStarted   ▲              TurnPaused             │         TurnEnded
                          └─────────────────────────────────────┘
                                    voice: TurnResumed

`TurnPaused` starts a speculative reply, `TurnResumed` rolls it back, and `TurnEnded` commits it. How much silence is
enough depends on `ending`:

- *fixed*: `silence_ms`.
- *semantic*: `complete_ms` if the model finds the turn complete, `max_silence_ms` if it finds the turn incomplete. The
  speculative reply shows which; until then, or if it never does, `silence_ms`.

While a reply is played, a turn starts only after `interrupt_ms` of voice, because an "mm-hm", 嗯 or a cough is shorter
and must not interrupt. The price is a later barge-in. Otherwise `onset_ms` of voice are enough.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from speechgpt2.errors import UserError
from speechgpt2.types import SAMPLE_RATE

HYSTERESIS = 0.15  # of the probability: a voice ends only when it is this far below the threshold
TIMES = ("onset_ms", "prefix_ms", "speculate_ms", "silence_ms", "complete_ms", "max_silence_ms", "interrupt_ms")
MAX_GAP = 200  # milliseconds: a longer gap ends a burst of voice


@dataclass(frozen=True)
class EndpointerSettings:
    """The settings of turn detection.

    Attributes:
        ending: How the end of a turn is decided (see the module).
        threshold: Probability of speech from which a block counts as voice.
        onset_ms: Voice after which a turn starts.
        prefix_ms: Audio before the onset that belongs to the turn.
        speculate_ms: Silence after which a turn pauses.
        silence_ms: Silence after which a turn ends.
        complete_ms: Silence after which a complete turn ends.
        max_silence_ms: Silence after which an incomplete turn ends.
        interrupt_ms: Voice after which a reply is interrupted.
        create_response: Whether the end of a turn is answered.
        interrupt_response: Whether a voice interrupts a reply. If not, it is ignored until the reply has been played.
        idle_ms: Silence on both sides after which `UserIdle` comes; None: never.

    Raises:
        UserError: A value is out of range.
    """

    ending: Literal["fixed", "semantic"] = "fixed"
    threshold: float = 0.5
    onset_ms: int = 64
    prefix_ms: int = 300
    speculate_ms: int = 200
    silence_ms: int = 500
    complete_ms: int = 150
    max_silence_ms: int = 4000
    interrupt_ms: int = 300
    create_response: bool = True
    interrupt_response: bool = True
    idle_ms: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise UserError(f"threshold must be between 0 and 1, not {self.threshold}")
        for name in TIMES:
            if not 0 <= getattr(self, name) <= 60_000:
                raise UserError(f"{name} must be in 0…60000 milliseconds, not {getattr(self, name)}")
        if self.idle_ms is not None and self.idle_ms <= 0:
            raise UserError(f"idle_ms must be above 0 milliseconds, not {self.idle_ms}")


@dataclass(frozen=True)
class TurnStarted:
    """The user's turn started at sample `at`. Its audio begins `lookback` samples before now."""

    at: int
    lookback: int


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
    """The endpointer of one microphone, from sample `at` on. `set_model_state` informs it about the model."""

    def __init__(self, settings: EndpointerSettings, at: int = 0):
        self.settings = settings
        self.user: Literal["silent", "speaking", "pausing"] = "silent"
        self.model: Literal["quiet", "thinking", "speaking"] = "quiet"
        self._now = self._quiet_since = at
        self._burst_start: int | None = None  # start of the burst of voice that may start or resume a turn
        self._burst_voice = 0  # samples of voice in the burst
        self._burst_end = at  # end of the latest voice in the burst
        self._last_voice = at  # end of the latest voice in the turn
        self._complete: bool | None = None  # whether the model finds the turn complete

    def set_model_state(self, model: Literal["quiet", "thinking", "speaking"]) -> None:
        """Set whether the model generates a reply (thinking), a reply is played (speaking), or neither."""
        if model == "quiet" and self.model != "quiet":
            self._quiet_since = self._now
        self.model = model

    def set_complete(self, complete: bool) -> None:
        """Set whether the model finds the turn up to the pause complete."""
        if self.user == "pausing":
            self._complete = complete

    def reset(self) -> None:
        """Forget the turn in progress."""
        self.user, self._burst_start, self._complete = "silent", None, None
        self._quiet_since = self._now

    def step(self, at: int, probability: float) -> Iterator[EndpointEvent]:
        """Process a block of the microphone.

        Args:
            at: The sample at which it ends.
            probability: Probability of speech in it.

        Yields:
            The events of this block, in order.
        """
        size, self._now = at - self._now, at
        continues = self.user == "speaking" or self._burst_start is not None
        voice = probability >= self.settings.threshold - (HYSTERESIS if continues else 0.0)
        self._follow_burst(voice, size)
        if self.user == "silent":
            yield from self._silent()
        elif self.user == "speaking":
            yield from self._speaking(voice)
        else:
            yield from self._pausing()

    def _follow_burst(self, voice: bool, size: int) -> None:
        """Update the burst of voice that may start or resume a turn."""
        if voice:
            if self._burst_start is None:
                self._burst_start, self._burst_voice = self._now - size, 0
            self._burst_voice += size
            self._burst_end = self._now
        elif self._now - self._burst_end > samples(MAX_GAP):
            self._burst_start = None

    def _silent(self) -> Iterator[EndpointEvent]:
        s = self.settings
        if self.model != "quiet" and not s.interrupt_response:
            self._burst_start = None
        if self._burst_start is None:
            yield from self._idle()
            return
        if self._burst_voice < samples(s.interrupt_ms if self.model == "speaking" else s.onset_ms):
            return
        if self.model != "quiet":
            yield BargeIn()
        start, self._burst_start = self._burst_start, None
        self.user, self._last_voice = "speaking", self._burst_end
        yield TurnStarted(start, self._now - start + samples(s.prefix_ms))

    def _speaking(self, voice: bool) -> Iterator[EndpointEvent]:
        if voice:
            self._last_voice = self._now
        elif self._now - self._last_voice >= samples(self.settings.speculate_ms):
            self.user, self._complete, self._burst_start = "pausing", None, None
            yield TurnPaused()
            yield from self._pausing()

    def _pausing(self) -> Iterator[EndpointEvent]:
        if self._burst_start is not None and self._burst_voice >= samples(self.settings.onset_ms):
            self.user, self._last_voice, self._burst_start = "speaking", self._burst_end, None
            yield TurnResumed()
        elif self._burst_start is None and self._now - self._last_voice >= samples(self._silence_needed()):
            end = self._last_voice
            self.reset()
            yield TurnEnded(end)

    def _silence_needed(self) -> int:
        """Return the milliseconds of silence that end the turn."""
        s = self.settings
        if s.ending == "fixed" or self._complete is None:
            return max(s.silence_ms, s.speculate_ms)
        return max(s.complete_ms if self._complete else s.max_silence_ms, s.speculate_ms)

    def _idle(self) -> Iterator[EndpointEvent]:
        idle = self.settings.idle_ms
        if idle is not None and self.model == "quiet" and self._now - self._quiet_since >= samples(idle):
            since, self._quiet_since = self._quiet_since, self._now
            yield UserIdle(since)


def samples(milliseconds: int) -> int:
    """Convert milliseconds to samples at 24 kHz."""
    return milliseconds * SAMPLE_RATE // 1000
