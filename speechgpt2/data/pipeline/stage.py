"""A stage: one clip in, one or several clips or a refusal out, the same for the same clip, wherever it runs.

    @dataclass(frozen=True)
    class TrimConfig:
        kind: Literal["trim"] = "trim"
        seconds: float = 0.1

    class Trim(Stage[TrimConfig]):
        version = 1

        def __call__(self, clip: Clip, sound: Sound) -> Clip: ...

A stage measures; whether a score is good enough is a rule's business (survey.py), so that a threshold can move without
anything being measured again. What cannot be used at all, such as a damaged file, a stage refuses itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from speechgpt2 import config as configs
from speechgpt2.data.pipeline.sound import Sound
from speechgpt2.data.pipeline.wire import content_hash
from speechgpt2.data.record import Clip


class StepConfig(Protocol):
    """What every step's configuration has: the step's name."""

    @property
    def kind(self) -> str: ...


C = TypeVar("C", bound=StepConfig)


class Rejected(Exception):
    """A clip is refused: `reason` is one word for counting, `detail` a line for people."""

    def __init__(self, reason: str, detail: str = "", score: float | None = None, threshold: float | None = None):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail, self.score, self.threshold = reason, detail, score, threshold


class Stage(Generic[C]):
    """See the module's text. `version` counts up whenever the code gives another result for the same clip.

    Constructing one costs nothing, since it may only be needed for its identity; a model is loaded on first use.
    """

    version: ClassVar[int]

    def __init__(self, config: C):
        self.config = config

    @property
    def name(self) -> str:
        return self.config.kind

    @property
    def model(self) -> str:
        """Which model it asks, with its version; empty for plain code."""
        return ""

    def __call__(self, clip: Clip, sound: Sound) -> Clip | Sequence[Clip]:
        """The clip with something added, or the clips it falls into. Errors: `Rejected`."""
        raise NotImplementedError

    @property
    def identity(self) -> str:
        """Of everything but the clip that decides a result, as text."""
        return identity_of(self.name, self.version, self.config, self.model)

    @cached_property
    def config_hash(self) -> str:
        """Short, for the records."""
        return hashlib.sha256(self.identity.encode()).hexdigest()[:12]

    @cached_property
    def _prefix(self) -> bytes:
        return f"{self.identity}\n".encode()

    def key(self, clip: Clip) -> bytes:
        """Under which the result for `clip` is filed."""
        return hashlib.sha256(self._prefix + content_hash(clip)).digest()[:16]


def identity_of(name: str, version: int, config: Any, model: str = "") -> str:
    """Canonical text of a step's name, version, config and model."""
    return json.dumps([name, version, configs.to_dict(config), model], sort_keys=True)
