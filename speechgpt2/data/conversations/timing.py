"""Timing of turns: gaps and overlaps, backchannels, and reactions to interruptions.

Each is a distribution as a short list of quantiles. The defaults follow published figures; `fit` replaces them by
measurements of your recordings.

- Gaps: two of five changes of speaker overlap; 18–30 % of all intervals between speakers are gaps above 500 ms
  (Heldner and Edlund 2010, doi:10.1016/j.wocn.2010.08.002: Dutch, Swedish and Scottish talk). Answers come 208 ms after
  the question on average, most often after 0–200 ms, and up to a second later if they do not answer it (Stivers et
  al. 2009, doi:10.1073/pnas.0903616106: ten languages).
- Backchannels are 16–19 % of all contributions (Knudsen et al. 2020, doi:10.3389/fpsyg.2020.593671: German, Dutch);
  the scenes determine their number. Their position in a turn, and the reaction time of an interrupted speaker, are
  estimates: we know of no published figures.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from speechgpt2.errors import UserError

QUANTILES = 11  # of a fitted distribution
ENOUGH = 20  # least observations for a fit


class SpeechSpan(NamedTuple):
    """A turn or backchannel of a real conversation: the speaker's channel, and its start and end in seconds."""

    channel: int
    start: float
    end: float
    backchannel: bool = False


@dataclass(frozen=True)
class Distribution:
    """Values at equally spaced probabilities from 0 to 1, linear between them."""

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.values) < 2 or list(self.values) != sorted(self.values):
            raise UserError("a distribution needs at least two values, in rising order")

    def draw(self, rng: random.Random) -> float:
        """Draw a value."""
        return float(np.interp(rng.random(), np.linspace(0, 1, len(self.values)), self.values))

    @classmethod
    def fit(cls, observed: Iterable[float]) -> Distribution:
        """Fit a distribution to observed values.

        Raises:
            UserError: there are fewer than `ENOUGH`.
        """
        values = list(observed)
        if len(values) < ENOUGH:
            raise UserError(f"{len(values)} observations are too few to fit a distribution; {ENOUGH} are needed")
        return cls(tuple(float(q) for q in np.quantile(values, np.linspace(0, 1, QUANTILES))))


@dataclass(frozen=True)
class TimingConfig:
    """The distributions.

    gap           seconds from the end of a turn to the start of the next; negative values are overlaps
    reaction      seconds from the start of an interruption until the interrupted speaker is silent
    backchannel   share of the turn that is over when a backchannel begins
    interruption  share of the turn that is over when an interruption begins
    """

    gap: Distribution = Distribution((-1.0, -0.42, -0.2, -0.09, 0.0, 0.11, 0.22, 0.35, 0.55, 0.9, 2.0))
    reaction: Distribution = Distribution((0.15, 0.25, 0.35, 0.45, 0.7))
    backchannel: Distribution = Distribution((0.3, 0.5, 0.8))
    interruption: Distribution = Distribution((0.35, 0.6, 0.85))


def fit(conversations: Iterable[Sequence[SpeechSpan]], base: TimingConfig | None = None) -> TimingConfig:
    """Fit gaps, and the positions of backchannels if there are enough; the rest is that of `base`.

    A gap is measured between consecutive turns of different speakers.

    Raises:
        UserError: there are too few gaps.
    """
    gaps: list[float] = []
    positions: list[float] = []
    for spans in conversations:
        turns = sorted((s for s in spans if not s.backchannel), key=lambda s: s.start)
        gaps += [b.start - a.end for a, b in zip(turns, turns[1:]) if a.channel != b.channel]
        for back in (s for s in spans if s.backchannel):
            positions += [
                (back.start - turn.start) / (turn.end - turn.start)
                for turn in turns
                if turn.channel != back.channel and turn.start <= back.start < turn.end
            ]
    fitted = replace(base or TimingConfig(), gap=Distribution.fit(gaps))
    return replace(fitted, backchannel=Distribution.fit(positions)) if len(positions) >= ENOUGH else fitted
