"""Global steps look at all clips of a run: rules with thresholds, comparisons among clips.

A global step needs only the records. It reads them as a stream, as often as necessary, and is computed in every run. So
a threshold can be changed, or a clip be added, and the stages have nothing to compute again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from speechgpt2.data.pipeline.stage import C, Step, identity_of
from speechgpt2.data.record import Clip, Decision
from speechgpt2.errors import UserError

ReadClips = Callable[[], Iterator[Clip]]  # opens the stream of clips again


class GlobalStep(Step[C]):
    """Clips in; the same clips in the same order out, with added fields or decisions. Rejected clips stay unchanged."""

    @property
    def identity(self) -> str:
        """Everything besides the clips that determines the results, as text."""
        return identity_of(self.name, self.version, self.config)

    def __call__(self, read: ReadClips) -> Iterator[Clip]:
        """Yield the clips with new fields or decisions."""
        raise NotImplementedError


@dataclass(frozen=True)
class Rule:
    """Reject clips whose score is outside of one bound, `at_least` or `at_most`.

    Attributes:
        reason: the reason of the rejection, one word.
        score: path of a number in the record, such as "quality.snr" or "quality.mos.dnsmos".
        at_least: lower bound.
        at_most: upper bound.
        unknown: whether a clip without the score is kept.
    """

    reason: str
    score: str
    at_least: float | None = None
    at_most: float | None = None
    unknown: Literal["keep", "reject"] = "keep"

    def __post_init__(self) -> None:
        if (self.at_least is None) == (self.at_most is None):
            raise UserError(f"the rule '{self.reason}' needs either at_least or at_most")
        score_of(_EMPTY, self.score)

    @property
    def threshold(self) -> float:
        """The bound."""
        bound = self.at_least if self.at_least is not None else self.at_most
        assert bound is not None
        return bound

    def allows(self, score: float | None) -> bool:
        """Whether a clip with this score is kept."""
        if score is None:
            return self.unknown == "keep"
        return score >= self.threshold if self.at_least is not None else score <= self.threshold

    def with_threshold(self, threshold: float) -> Rule:
        """Return the same rule with another threshold."""
        if self.at_least is not None:
            return replace(self, at_least=threshold)
        return replace(self, at_most=threshold)


_EMPTY = Clip("empty")


def score_of(clip: Clip, path: str) -> float | None:
    """Return the number at a path such as "quality.snr". Raises `UserError` if records have no such field."""
    value: Any = clip
    for name in path.split("."):
        if isinstance(value, dict):
            value = value.get(name)
        elif hasattr(value, "__dataclass_fields__") and name in value.__dataclass_fields__:
            value = getattr(value, name)
        else:
            raise UserError(f"a record has no score '{path}'")
    if value is not None and type(value) not in (float, int):
        raise UserError(f"'{path}' is not a number in records")
    return value


@dataclass(frozen=True)
class RulesConfig:
    """Rules in order; the first one that rejects gives the reason."""

    kind: Literal["rules"] = "rules"
    rules: tuple[Rule, ...] = ()


class Rules(GlobalStep[RulesConfig]):
    """Applies every rule to every clip, so that decisions show all scores."""

    version = 1

    @cached_property
    def _hash(self) -> str:
        return hashlib.sha256(self.identity.encode()).hexdigest()[:12]

    def __call__(self, read: ReadClips) -> Iterator[Clip]:
        """Yield the clips with new fields or decisions."""
        for clip in read():
            yield self.decide(clip) if clip.kept else clip

    def decide(self, clip: Clip) -> Clip:
        """Return the clip with the decision of every rule whose score is known."""
        decisions = []
        for rule in self.config.rules:
            score = score_of(clip, rule.score)
            if score is not None or not rule.allows(score):
                keep = rule.allows(score)
                decisions.append(Decision("rules", self.version, keep, self._hash, rule.reason, score, rule.threshold))
        return replace(clip, decisions=(*clip.decisions, *decisions))
