"""Times for the sound of engines that do not tell when they say what: the forced aligner's (data/annotate)."""

from __future__ import annotations

import numpy as np
import soxr

from speechgpt2.tts.utterance import Rendering
from speechgpt2.types import SAMPLE_RATE


def aligned(pcm: np.ndarray, rate: int, text: str, lang: str) -> Rendering:
    """`pcm [N]` with the times of its words and phones. Errors: ValueError if the text cannot be found in it."""
    from speechgpt2.data.annotate.align import locate
    from speechgpt2.tts.alignment.synthesis_aligner import Rehearsal
    from speechgpt2.tts.alignment.viterbi import Unalignable

    heard = soxr.resample(pcm, rate, SAMPLE_RATE, quality="HQ") if rate != SAMPLE_RATE else pcm
    try:
        found, _ = locate(Rehearsal()(heard.astype(np.float32), text, lang))
    except Unalignable as reason:
        raise ValueError(f"{text!r} is not in what was said: {reason}") from None
    return Rendering(heard.astype(np.float32), SAMPLE_RATE, found.words, found.phones)
