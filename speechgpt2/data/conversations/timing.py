"""Timing of speech: gaps and overlaps between turns, backchannels, and reactions to interruptions.

Each is a distribution given by quantiles, so a fitted one is a short list of numbers. The defaults follow published
figures; `fit` replaces them by measurements of your own recordings.

- Gaps: two of five changes of speaker overlap; 18–30 % of all intervals between speakers are gaps above 500 ms
  (Heldner and Edlund 2010, doi:10.1016/j.wocn.2010.08.002: Dutch, Swedish and Scottish talk). Answers come 208 ms after
  the question on average, most often after 0–200 ms, and up to a second later if they do not answer it (Stivers et
  al. 2009, doi:10.1073/pnas.0903616106: ten languages).
- Backchannels are 16–19 % of all contributions (Knudsen et al. 2020, doi:10.3389/fpsyg.2020.593671: German, Dutch);
  the scenes determine their number. Their place in a turn, and the reaction time of an interrupted speaker, are
  estimates: we know of no table.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from speechgpt2.errors import UserError

QUANTILES = 11  # of a fitted distribution
ENOUGH = 20  # observations that a fit takes at least


class SpeechSpan(NamedTuple):
    """A turn or backchannel of a real conversation: who spoke, in seconds."""

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
        """Errors: `UserError` for fewer than `ENOUGH` observations."""
        values = list(observed)
        if len(values) < ENOUGH:
            raise UserError(f"{len(values)} observations are too few to fit a distribution; {ENOUGH} are needed")
        return cls(tuple(float(q) for q in np.quantile(values, np.linspace(0, 1, QUANTILES))))


@dataclass(frozen=True)
class TimingConfig:
    """All in seconds, but `backchannel` and `interruption`: the share of the turn that is over when they begin.

    gap       from the end of a turn to the next one's start; below zero they overlap
    reaction  from the start of an interruption until the interrupted one is silent
    """

    gap: Distribution = Distribution((-1.0, -0.42, -0.2, -0.09, 0.0, 0.11, 0.22, 0.35, 0.55, 0.9, 2.0))
    reaction: Distribution = Distribution((0.15, 0.25, 0.35, 0.45, 0.7))
    backchannel: Distribution = Distribution((0.3, 0.5, 0.8))
    interruption: Distribution = Distribution((0.35, 0.6, 0.85))


def fit(conversations: Iterable[Sequence[SpeechSpan]], base: TimingConfig | None = None) -> TimingConfig:
    """Gaps and places of backchannels as in these conversations; the rest as in `base`.

    A gap is measured between the turns of different speakers that follow one another. Errors: `UserError` for too few.
    """
    gaps: list[float] = []
    places: list[float] = []
    for spans in conversations:
        turns = sorted((s for s in spans if not s.backchannel), key=lambda s: s.start)
        gaps += [b.start - a.end for a, b in zip(turns, turns[1:]) if a.channel != b.channel]
        for back in (s for s in spans if s.backchannel):
            places += [
                (back.start - turn.start) / (turn.end - turn.start)
                for turn in turns
                if turn.channel != back.channel and turn.start <= back.start < turn.end
            ]
    fitted = replace(base or TimingConfig(), gap=Distribution.fit(gaps))
    return replace(fitted, backchannel=Distribution.fit(places)) if len(places) >= ENOUGH else fitted
