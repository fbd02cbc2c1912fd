"""Stage: words, phones and tones with their times.

    Align(AlignConfig())                              # by comparison with synthetic speech
    Align(AlignConfig(), emission_model=my_model)     # with any other emissions

Times that are labelled as ground truth, such as those of synthetic speech, are never replaced.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from speechgpt2.data.pipeline.clip_audio import ClipAudio
from speechgpt2.data.pipeline.stage import Stage
from speechgpt2.data.record import Clip, Label
from speechgpt2.tts.alignment.align import align_emissions
from speechgpt2.tts.alignment.ctc import CtcModel
from speechgpt2.tts.alignment.emissions import EmissionModel
from speechgpt2.tts.alignment.synthesis_aligner import SynthesisAligner
from speechgpt2.tts.alignment.viterbi import Unalignable
from speechgpt2.tts.utterance import Alignment

AGREEMENT = "alignment"  # in `quality.extra`: the agreement of audio and text


@dataclass(frozen=True)
class AlignConfig:
    """Options: `model` is the folder of a CTC model (tts/alignment/ctc.py); without one, espeak is used."""

    kind: Literal["align"] = "align"
    model: str = ""


class Align(Stage[AlignConfig]):
    """Aligns clips with a transcript in English or Mandarin.

    Sets the words' times, and the score "quality.extra.alignment": the agreement of audio and text, 0…1. A text that
    cannot be aligned gets the score 0 and no times.
    """

    version = 1

    def __init__(self, config: AlignConfig, emission_model: EmissionModel | None = None):
        super().__init__(config)
        self._emission_model: EmissionModel = emission_model or (
            CtcModel(config.model) if config.model else SynthesisAligner()
        )

    @property
    def model(self) -> str:
        """The model that the step uses, with its version."""
        return self._emission_model.id

    def __call__(self, clip: Clip, clip_audio: ClipAudio) -> Clip:
        """Return the clip with its alignment."""
        text = clip.text.raw or clip.text.norm  # with punctuation, where speakers pause
        if not text or is_ground_truth(clip, "align"):
            return clip
        try:
            alignment, agreement = align_emissions(self._emission_model(clip_audio.pcm, text, clip.lang.code))
        except Unalignable:
            alignment, agreement = Alignment(), 0.0
        agreement = round(agreement, 4)
        quality = replace(clip.quality, extra={**clip.quality.extra, AGREEMENT: agreement})
        if not alignment.words:
            return replace(clip, quality=quality)
        label = Label(self._emission_model.id, str(self.version), agreement)
        return replace(clip, align=alignment, quality=quality, labels_from={**clip.labels_from, "align": label})


def is_ground_truth(clip: Clip, field: str) -> bool:
    """Whether a field of the clip is ground truth."""
    label = clip.labels_from.get(field)
    return label is not None and label.kind == "truth"
