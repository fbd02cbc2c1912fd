"""SenseVoice and Paraformer by FunASR, which is installed by hand: it is in no extra of this package."""

from __future__ import annotations

import importlib
import re

import numpy as np
from numpy.typing import NDArray

from speechgpt2.asr.recogniser import Transcription, check_language, to_features_rate
from speechgpt2.errors import UserError


class FunASR:
    """A model of FunASR, for example iic/SenseVoiceSmall, which ModelScope's client fetches.

    Raises:
        UserError: funasr is not installed.
    """

    independent = True
    languages = frozenset({"en", "zh", "yue", "ja", "ko"})

    def __init__(self, model: str) -> None:
        self.name = model.rsplit("/", 1)[-1]
        try:
            library = importlib.import_module("funasr")
        except ImportError:
            raise UserError(
                f"funasr is not installed; run: pip install funasr (ModelScope has the weights of '{model}')"
            ) from None
        self._model = library.AutoModel(model=model, disable_update=True)

    def transcribe(self, pcm: NDArray[np.floating], language: str) -> Transcription:
        """Transcribe `pcm` [N] at 24 kHz; see `Recogniser.transcribe`."""
        code = check_language(self, language)
        if not len(pcm):
            return Transcription("", code)
        text = self._model.generate(input=to_features_rate(pcm), language=code or "auto")[0]["text"]
        # SenseVoice puts tags before the text; the first one is the language: <|zh|>.
        tags = re.findall(r"<\|(\w+)\|>", text)
        return Transcription(re.sub(r"<\|[^|]*\|>", "", text).strip(), tags[0] if tags else code)
