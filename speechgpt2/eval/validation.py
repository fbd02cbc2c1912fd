"""What judges decoded speech while a codec trains: STOI, PESQ, and a recogniser if one is named."""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

from speechgpt2 import asr
from speechgpt2.asr.recogniser import Recogniser
from speechgpt2.codec.validation import HeldOutSpeech, Judge
from speechgpt2.errors import MissingDependency
from speechgpt2.eval import metrics
from speechgpt2.extras import require

Wave = NDArray[np.float32]
MEASURES = ("stoi", "pesq")


def codec_judge(recogniser: str = "", by: str = "") -> Judge | None:
    """Return a judge of decoded speech, or None if there is nothing to judge with.

    Its values are `stoi` and `pesq` (wide band), where the extra `eval` is installed, and `asr_errors`, the word or
    character errors of the decoded speech for each word or character of the text.

    Args:
        recogniser: A recogniser as `asr.load` takes it; "" for none.
        by: The value that decides which codec is best.

    Raises:
        UserError: The recogniser cannot be loaded, or what measures `by` is not installed.
    """
    listener = asr.load(recogniser) if recogniser else None
    has_measures = _has_measures(is_needed=by in MEASURES)
    if listener is None and not has_measures:
        return None

    def judge(original: Wave, decoded: Wave, clip: HeldOutSpeech) -> dict[str, float]:
        values = {}
        if has_measures:
            values = {"stoi": metrics.stoi(original, decoded), "pesq": metrics.pesq(original, decoded, "wb")}
        if listener is not None:
            values["asr_errors"] = _errors(listener, decoded, clip)
        return values

    return judge


def _has_measures(is_needed: bool) -> bool:
    try:
        require("pystoi", "eval"), require("pesq", "eval")
    except MissingDependency as missing:
        if is_needed:
            raise
        print(f"validation without STOI and PESQ: {missing}", file=sys.stderr)
        return False
    return True


def _errors(listener: Recogniser, decoded: Wave, clip: HeldOutSpeech) -> float:
    if not clip.text or clip.lang not in listener.languages:
        return float("nan")
    text = listener.transcribe(decoded, clip.lang).text
    return asr.count_errors([clip.text], [text], clip.lang).rate
