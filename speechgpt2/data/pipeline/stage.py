"""A stage: one clip in; one clip, several clips or a rejection out. The same clip always gives the same result.

    @dataclass(frozen=True)
    class TrimConfig:
        kind: Literal["trim"] = "trim"
        seconds: float = 0.1

    class Trim(Stage[TrimConfig]):
        version = 1

        def __call__(self, clip: Clip, clip_audio: ClipAudio) -> Clip: ...

A stage measures. Rules compare scores with thresholds (global_steps.py), so a threshold can change without new
measurements. A stage itself rejects only what cannot be used at all, such as a damaged file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from speechgpt2 import config as configs
from speechgpt2.data.pipeline.clip_audio import ClipAudio
from speechgpt2.data.pipeline.serialization import content_hash
from speechgpt2.data.record import Clip


class StepConfig(Protocol):
    """The configuration of any step: it has the step's name."""

    @property
    def kind(self) -> str:
        """The step's name in YAML files."""
        ...


C = TypeVar("C", bound=StepConfig)


class Step(Generic[C]):
    """The base of stages and global steps: a configuration and a version of the code.

    Increase `version` whenever the code gives other results for the same clips.
    """

    version: ClassVar[int]

    def __init__(self, config: C):
        self.config = config

    @property
    def name(self) -> str:
        """The step's name."""
        return self.config.kind


class Rejected(Exception):
    """A clip is rejected: `reason` is one word for statistics, `detail` a line for people."""

    def __init__(self, reason: str, detail: str = "", score: float | None = None, threshold: float | None = None):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail, self.score, self.threshold = reason, detail, score, threshold


class Stage(Step[C]):
    """A stage (see the module).

    The constructor must be cheap, because some instances are used only for their identity. A model is loaded on first
    use.
    """

    @property
    def model(self) -> str:
        """The model that the stage uses, with its version; empty without a model."""
        return ""

    def __call__(self, clip: Clip, clip_audio: ClipAudio) -> Clip | Sequence[Clip]:
        """Return the clip with additions, or the clips it is split into. Raises `Rejected`."""
        raise NotImplementedError

    @property
    def identity(self) -> str:
        """Everything besides the clip that determines a result, as text."""
        return identity_of(self.name, self.version, self.config, self.model)

    @cached_property
    def config_hash(self) -> str:
        """A short hash for the records."""
        return hashlib.sha256(self.identity.encode()).hexdigest()[:12]

    @cached_property
    def _key_prefix(self) -> bytes:
        return f"{self.identity}\n".encode()

    def key(self, clip: Clip) -> bytes:
        """Return the key of the result for `clip`."""
        return hashlib.sha256(self._key_prefix + content_hash(clip)).digest()[:16]


def identity_of(name: str, version: int, config: Any, model: str = "") -> str:
    """Return a canonical text of a step's name, version, config and model."""
    return json.dumps([name, version, configs.to_dict(config), model], sort_keys=True)
