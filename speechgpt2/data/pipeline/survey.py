"""What looks at all clips of a run at once, cheaply: rules with thresholds, comparisons among clips.

A survey needs nothing but the records, reads them as a stream, as often as it must, and is computed afresh in every
run. So a threshold can move, or a clip come and go, without a stage having to work again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Generic, Literal

from speechgpt2.data.pipeline.stage import C, identity_of
from speechgpt2.data.record import Clip, Decision
from speechgpt2.errors import UserError

Read = Callable[[], Iterator[Clip]]  # opens the stream of clips once more


class Survey(Generic[C]):
    """Clips in, the same clips in the same order out, with fields or decisions added; rejected ones untouched."""

    version: ClassVar[int]

    def __init__(self, config: C):
        self.config = config

    @property
    def name(self) -> str:
        return self.config.kind

    @property
    def identity(self) -> str:
        return identity_of(self.name, self.version, self.config)

    def __call__(self, read: Read) -> Iterator[Clip]:
        raise NotImplementedError


@dataclass(frozen=True)
class Rule:
    """Reject as `reason` what lies outside one bound, `at_least` or `at_most`.

    score    the path of a number in the record, such as "quality.snr" or "quality.mos.dnsmos"
    unknown  whether a clip without that score is kept
    """

    reason: str
    score: str
    at_least: float | None = None
    at_most: float | None = None
    unknown: Literal["keep", "reject"] = "keep"

    def __post_init__(self) -> None:
        if (self.at_least is None) == (self.at_most is None):
            raise UserError(f"the rule '{self.reason}' needs one of at_least and at_most")
        score_of(_NOBODY, self.score)

    @property
    def threshold(self) -> float:
        bound = self.at_least if self.at_least is not None else self.at_most
        assert bound is not None
        return bound

    def allows(self, score: float | None) -> bool:
        if score is None:
            return self.unknown == "keep"
        return score >= self.threshold if self.at_least is not None else score <= self.threshold

    def moved(self, threshold: float) -> Rule:
        """The same rule with another threshold."""
        if self.at_least is not None:
            return replace(self, at_least=threshold)
        return replace(self, at_most=threshold)


_NOBODY = Clip("nobody")


def score_of(clip: Clip, path: str) -> float | None:
    """The number at a path such as "quality.snr". Errors: `UserError` if a record has no such field."""
    value: Any = clip
    for name in path.split("."):
        if isinstance(value, dict):
            value = value.get(name)
        elif hasattr(value, "__dataclass_fields__") and name in value.__dataclass_fields__:
            value = getattr(value, name)
        else:
            raise UserError(f"a record has no score '{path}'")
    if value is not None and type(value) not in (float, int):
        raise UserError(f"'{path}' is no number of a record")
    return value


@dataclass(frozen=True)
class RulesConfig:
    """Rules in the order in which they are asked; the first that rejects gives the reason."""

    kind: Literal["rules"] = "rules"
    rules: tuple[Rule, ...] = ()


class Rules(Survey[RulesConfig]):
    """Every rule is asked of every clip that came so far, so that all scores stand in its decisions."""

    version = 1

    @cached_property
    def _hash(self) -> str:
        return hashlib.sha256(self.identity.encode()).hexdigest()[:12]

    def __call__(self, read: Read) -> Iterator[Clip]:
        for clip in read():
            yield self.judge(clip) if clip.kept else clip

    def judge(self, clip: Clip) -> Clip:
        """The clip with the decision of every rule that knows its score."""
        decisions = []
        for rule in self.config.rules:
            score = score_of(clip, rule.score)
            if score is not None or not rule.allows(score):
                keep = rule.allows(score)
                decisions.append(Decision("rules", self.version, keep, self._hash, rule.reason, score, rule.threshold))
        return replace(clip, decisions=(*clip.decisions, *decisions))
