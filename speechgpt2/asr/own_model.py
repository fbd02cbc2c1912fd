"""A model of this project as a recogniser: what `SpeechGPT.transcribe` writes.

It is not independent. A model that evaluates its own speech may understand what nobody else does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechgpt2.asr.recogniser import Transcription, check_language
from speechgpt2.types import UNFINISHED


class OwnModel:
    """A `SpeechGPT` as a recogniser of English and Mandarin.

    Args:
        model: A loaded `SpeechGPT`, or anything with its `transcribe`.
        name: How tables name it.
    """

    independent = False
    languages = frozenset({"en", "zh"})

    def __init__(self, model: Any, name: str) -> None:
        self.model, self.name = model, name

    def transcribe(self, pcm: NDArray[np.floating], language: str) -> Transcription:
        """Transcribe `pcm` [N] at 24 kHz; the model detects the language itself.

        Raises:
            UserError: The model writes no transcripts, as the released layout does not.
        """
        code = check_language(self, language)
        if not len(pcm):
            return Transcription("", code)
        return Transcription(self.model.transcribe(pcm).removesuffix(UNFINISHED), code)
