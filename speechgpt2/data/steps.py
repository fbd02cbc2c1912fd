"""The registry of pipeline steps, by the `kind` that a YAML file names, and the presets of the package.

To add a step (a filter, a measure, a label):

1. write a frozen config dataclass with `kind: Literal["my_step"] = "my_step"` and the step's options;
2. write a `Stage` (one clip at a time, pipeline/stage.py) or a `GlobalStep` (all clips, pipeline/global_steps.py), with
   a `version`;
3. add both to `STEPS` below.

A stage measures. To reject clips by the measure, add a rule to the YAML file: it needs no code.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from speechgpt2 import config
from speechgpt2.data.annotate.align import Align, AlignConfig
from speechgpt2.data.annotate.caption import Captions, CaptionsConfig
from speechgpt2.data.annotate.prosody import MeasureProsody, ProsodyConfig
from speechgpt2.data.clean import plugins
from speechgpt2.data.clean.decode import Decode, DecodeConfig
from speechgpt2.data.clean.duplicates import Duplicates, DuplicatesConfig, Fingerprint, FingerprintConfig
from speechgpt2.data.clean.loudness import Loudness, LoudnessConfig
from speechgpt2.data.clean.quality import MeasureQuality, QualityConfig
from speechgpt2.data.clean.segment import Segment, SegmentConfig
from speechgpt2.data.clean.speakers import (
    NameSpeakers,
    SpeakerChanges,
    SpeakerChangesConfig,
    SpeakerEmbedding,
    SpeakerEmbeddingConfig,
    SpeakersConfig,
)
from speechgpt2.data.clean.text_match import TextMatch, TextMatchConfig
from speechgpt2.data.clean.transcript_checks import (
    CheckTranscript,
    RateOutliers,
    RateOutliersConfig,
    TranscriptConfig,
)
from speechgpt2.data.pipeline.global_steps import Rules, RulesConfig
from speechgpt2.data.pipeline.runner import AnyStep
from speechgpt2.errors import UserError

FOLDER = Path(__file__).parent / "presets"

# config -> step
STEPS: dict[type, type] = {
    DecodeConfig: Decode,
    SegmentConfig: Segment,
    SpeakerChangesConfig: SpeakerChanges,
    LoudnessConfig: Loudness,
    QualityConfig: MeasureQuality,
    TranscriptConfig: CheckTranscript,
    TextMatchConfig: TextMatch,
    FingerprintConfig: Fingerprint,
    SpeakerEmbeddingConfig: SpeakerEmbedding,
    plugins.RecogniseConfig: plugins.Recognise,
    plugins.OpinionScoreConfig: plugins.OpinionScore,
    plugins.SeparateConfig: plugins.Separate,
    plugins.DiariseConfig: plugins.Diarise,
    RateOutliersConfig: RateOutliers,
    RulesConfig: Rules,
    DuplicatesConfig: Duplicates,
    SpeakersConfig: NameSpeakers,
    AlignConfig: Align,
    ProsodyConfig: MeasureProsody,
    CaptionsConfig: Captions,
}

AnyStepConfig: Any = functools.reduce(operator.or_, STEPS)


@dataclass(frozen=True)
class PipelineConfig:
    """The steps of a run, in order; the first is `decode`."""

    steps: tuple[AnyStepConfig, ...]

    def __post_init__(self) -> None:
        if not self.steps or not isinstance(self.steps[0], DecodeConfig):
            raise UserError("the first step must be {kind: decode}")

    def build(self) -> Sequence[AnyStep]:
        """Return the steps, ready to run."""
        return [STEPS[type(step)](step) for step in self.steps]

    def with_labels(self) -> PipelineConfig:
        """Return the same steps, followed by those that label clips: times, prosody, captions."""
        labelling = (AlignConfig(), ProsodyConfig(), CaptionsConfig())
        present = {step.kind for step in self.steps}
        return PipelineConfig((*self.steps, *(step for step in labelling if step.kind not in present)))

    def with_thresholds(self, thresholds: dict[str, float]) -> PipelineConfig:
        """Return the same steps with other thresholds.

        Args:
            thresholds: by the reason of a rule.

        Raises:
            UserError: no rule has such a reason.
        """
        reasons: set[str] = set()
        steps: list[Any] = []
        for step in self.steps:
            if isinstance(step, RulesConfig):
                reasons |= {rule.reason for rule in step.rules}
                rules = tuple(
                    r.with_threshold(thresholds[r.reason]) if r.reason in thresholds else r for r in step.rules
                )
                step = replace(step, rules=rules)
            if isinstance(step, DuplicatesConfig):
                reasons.add("duplicate")
                step = replace(step, at_most=thresholds.get("duplicate", step.at_most))
            steps.append(step)
        for reason in thresholds:
            if reason not in reasons:
                raise UserError(f"no rule has the reason '{reason}'; there are {', '.join(sorted(reasons))}")
        return PipelineConfig(tuple(steps))


def preset_names() -> list[str]:
    """Return the names of the presets."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(preset: str) -> PipelineConfig:
    """Load a preset by name, or a YAML file by path. Raises `UserError` if there is neither."""
    if preset in preset_names():
        return config.load(PipelineConfig, FOLDER / f"{preset}.yaml")
    if Path(preset).is_file():
        return config.load(PipelineConfig, preset)
    raise UserError(f"no preset and no file '{preset}'; presets are {', '.join(preset_names())}")
