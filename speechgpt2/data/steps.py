"""All steps, of cleaning and annotation, by the name that a YAML file gives them, and the presets of the package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from speechgpt2 import config
from speechgpt2.data.annotate.align import Align, AlignConfig
from speechgpt2.data.annotate.caption import Captions, CaptionsConfig
from speechgpt2.data.annotate.prosody import MeasureProsody, ProsodyConfig
from speechgpt2.data.clean.decode import Decode, DecodeConfig
from speechgpt2.data.clean.duplicates import Duplicates, DuplicatesConfig, Fingerprint, FingerprintConfig
from speechgpt2.data.clean.echo import Echo, EchoConfig
from speechgpt2.data.clean.loudness import Loudness, LoudnessConfig
from speechgpt2.data.clean.plugins import (
    Opinion,
    OpinionConfig,
    Recognise,
    RecogniseConfig,
    Separate,
    SeparateConfig,
    Voices,
    VoicesConfig,
)
from speechgpt2.data.clean.quality import Measure, QualityConfig
from speechgpt2.data.clean.segment import Segment, SegmentConfig
from speechgpt2.data.clean.speakers import Speakers, SpeakersConfig, Turns, TurnsConfig, VoiceConfig, VoicePrint
from speechgpt2.data.clean.wording import Rates, RatesConfig, Transcript, TranscriptConfig
from speechgpt2.data.pipeline.runner import Step
from speechgpt2.data.pipeline.survey import Rules, RulesConfig
from speechgpt2.errors import UserError

FOLDER = Path(__file__).parent / "presets"
STEPS: dict[type, type] = {
    DecodeConfig: Decode, SegmentConfig: Segment, TurnsConfig: Turns, LoudnessConfig: Loudness, QualityConfig: Measure,
    TranscriptConfig: Transcript, EchoConfig: Echo, FingerprintConfig: Fingerprint, VoiceConfig: VoicePrint,
    RecogniseConfig: Recognise, OpinionConfig: Opinion, SeparateConfig: Separate, VoicesConfig: Voices,
    RatesConfig: Rates, RulesConfig: Rules, DuplicatesConfig: Duplicates, SpeakersConfig: Speakers,
    AlignConfig: Align, ProsodyConfig: MeasureProsody, CaptionsConfig: Captions,
}  # fmt: skip

AnyStep = (
    DecodeConfig | SegmentConfig | TurnsConfig | LoudnessConfig | QualityConfig | TranscriptConfig | EchoConfig
    | FingerprintConfig | VoiceConfig | RecogniseConfig | OpinionConfig | SeparateConfig | VoicesConfig | RatesConfig
    | RulesConfig | DuplicatesConfig | SpeakersConfig | AlignConfig | ProsodyConfig | CaptionsConfig
)  # fmt: skip


@dataclass(frozen=True)
class PipelineConfig:
    """The steps in order."""

    steps: tuple[AnyStep, ...]

    def __post_init__(self) -> None:
        if not self.steps or not isinstance(self.steps[0], DecodeConfig):
            raise UserError("the first step must be {kind: decode}")

    def build(self) -> Sequence[Step]:
        return [STEPS[type(step)](step) for step in self.steps]

    def annotated(self) -> PipelineConfig:
        """The same steps, and after them those that label clips: times, prosody, captions."""
        labelling = (AlignConfig(), ProsodyConfig(), CaptionsConfig())
        known = {step.kind for step in self.steps}
        return PipelineConfig((*self.steps, *(step for step in labelling if step.kind not in known)))

    def moved(self, thresholds: dict[str, float]) -> PipelineConfig:
        """The same steps with other thresholds, by the reason of a rule. Errors: `UserError` for unknown ones."""
        known: set[str] = set()
        steps: list[Any] = []
        for step in self.steps:
            if isinstance(step, RulesConfig):
                known |= {rule.reason for rule in step.rules}
                rules = tuple(r.moved(thresholds[r.reason]) if r.reason in thresholds else r for r in step.rules)
                step = replace(step, rules=rules)
            if isinstance(step, DuplicatesConfig):
                known.add("duplicate")
                step = replace(step, at_most=thresholds.get("duplicate", step.at_most))
            steps.append(step)
        for reason in thresholds:
            if reason not in known:
                raise UserError(f"no rule rejects as '{reason}'; there are {', '.join(sorted(known))}")
        return PipelineConfig(tuple(steps))


def names() -> list[str]:
    """Of the presets."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(preset: str) -> PipelineConfig:
    """A preset by name, or a YAML file of one's own. Errors: `UserError`."""
    if preset in names():
        return config.load(PipelineConfig, FOLDER / f"{preset}.yaml")
    if Path(preset).is_file():
        return config.load(PipelineConfig, preset)
    raise UserError(f"no preset and no file '{preset}'; presets are {', '.join(names())}")
