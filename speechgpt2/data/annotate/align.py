"""Stage: words, phones and tones with the times at which they are said.

    Align(AlignConfig())                       # with what comes along
    Align(AlignConfig(), emitter=my_model)     # with any other emissions

Times that are labelled as the truth, as those of synthetic speech, are never replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from speechgpt2.data.pipeline.sound import Sound
from speechgpt2.data.pipeline.stage import Stage
from speechgpt2.data.record import Alignment, Clip, Label
from speechgpt2.tts.alignment.ctc import Ctc
from speechgpt2.tts.alignment.emissions import Emissions, Emitter, Part
from speechgpt2.tts.alignment.synthesis_aligner import Rehearsal
from speechgpt2.tts.alignment.viterbi import Stretch, Unalignable, best_path
from speechgpt2.tts.utterance import Phone, Word

AGREEMENT = "alignment"  # in `quality.extra`: how well sound and text agree


@dataclass(frozen=True)
class AlignConfig:
    """model: the folder of a CTC model (ctc.py); without one, espeak reads the text (extra `synthesis`)."""

    kind: Literal["align"] = "align"
    model: str = ""


class Align(Stage[AlignConfig]):
    """The alignment of clips with a transcript in English or Mandarin.

    How well sound and text agree, 0…1, is filed as the score "quality.extra.alignment": 0 for a text that cannot be
    aligned at all, which then stays without times.
    """

    version = 1

    def __init__(self, config: AlignConfig, emitter: Emitter | None = None):
        super().__init__(config)
        self._emitter: Emitter = emitter or (Ctc(config.model) if config.model else Rehearsal())

    @property
    def model(self) -> str:
        return self._emitter.id

    def __call__(self, clip: Clip, sound: Sound) -> Clip:
        text = clip.text.raw or clip.text.norm  # with its punctuation, at which a reader pauses
        if not text or is_true(clip, "align"):
            return clip
        try:
            found, agreement = locate(self._emitter(sound.pcm, text, clip.lang.code))
        except Unalignable:
            found, agreement = Alignment(), 0.0
        agreement = round(agreement, 4)
        quality = replace(clip.quality, extra={**clip.quality.extra, AGREEMENT: agreement})
        if not found.words:
            return replace(clip, quality=quality)
        label = Label(self._emitter.id, str(self.version), agreement)
        return replace(clip, align=found, quality=quality, labels_from={**clip.labels_from, "align": label})


def is_true(clip: Clip, field: str) -> bool:
    """Whether what the clip says of a field is known, not measured."""
    label = clip.labels_from.get(field)
    return label is not None and label.kind == "truth"


def locate(emissions: Emissions) -> tuple[Alignment, float]:
    """Where everything is said, and how probable that is: the tokens' mean probability per step, 0…1.

    Errors: `Unalignable`.
    """
    within = (
        [place for word in emissions.words for place in range(word.first + 1, word.last)] if emissions.joined else ()
    )
    path = best_path(emissions.log_probs, emissions.tokens, emissions.blank, within)

    def span(part: Part) -> tuple[float, float]:
        edges = (path[part.first].first, path[part.last - 1].last)
        start, end = (round(emissions.start + edge * emissions.seconds, 4) for edge in edges)
        return start, end

    words = tuple(Word(part.text, *span(part)) for part in emissions.words)
    phones = tuple(Phone(part.text, *span(part)) for part in emissions.phones)
    return Alignment(words, phones, tones_of(phones)), _agreement(path, emissions)


def _agreement(path: Sequence[Stretch], emissions: Emissions) -> float:
    """Mean probability, over the steps of all tokens, of the token against the step's most probable one."""
    ratios = [
        emissions.log_probs[a:b, token] - emissions.log_probs[a:b].max(axis=1)
        for (a, b, _), token in zip(path, emissions.tokens)
    ]
    return float(np.exp(np.concatenate(ratios)).mean()) if ratios else 0.0


def tones_of(phones: Sequence[Phone]) -> tuple[Phone, ...]:
    """The tones of Mandarin vowels, which carry them as a digit."""
    return tuple(phone._replace(label=phone.label[-1]) for phone in phones if phone.label[-1:].isdigit())
