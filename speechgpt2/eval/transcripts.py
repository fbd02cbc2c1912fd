"""The errors of a model's transcripts of held-out recordings, and those of the ASR judge.

For a set without reference transcripts, the judge's transcripts are the reference; without a judge the set has no row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from speechgpt2.asr import count_errors
from speechgpt2.asr.error_rate import error_name
from speechgpt2.asr.own_model import OwnModel
from speechgpt2.errors import UserError
from speechgpt2.eval.judges import Judges
from speechgpt2.eval.report import column
from speechgpt2.eval.speech_sets import SpeechClip


@dataclass(frozen=True)
class TranscriptRow:
    """Errors of one recogniser on one set of recordings."""

    test_set: str = column("recordings")
    recogniser: str = column("recogniser")
    n: int = column("n", "d")
    error_name: str = column("errors")
    error_rate: float = column("rate ↓", ".3f")
    exact: float = column("exactly right ↑", ".2f")


def transcript_rows(
    model: Any, sets: Mapping[str, Sequence[SpeechClip]], panel: Judges, advance: Callable[[], Any] = lambda: None
) -> list[TranscriptRow]:
    """The model's row and the judge's row of each set; none for a model that writes no transcripts.

    Args:
        model: A `SpeechGPT`.
        sets: Clips by the name of their set, in one language each.
        panel: The judges.
        advance: Called after each clip.
    """
    rows = []
    own = OwnModel(model, "the model")
    for name, clips in sets.items():
        lang = clips[0].lang
        asr_texts = panel.transcribe([clip.pcm for clip in clips], lang) if panel.knows(lang) else []
        texts = [clip.text for clip in clips] if all(clip.text for clip in clips) else asr_texts
        if not texts:
            continue
        transcripts = []
        for clip in clips:
            try:
                transcripts.append(own.transcribe(clip.pcm, lang).text)
            except UserError:
                return []
            advance()
        rows.append(_row(name, own.name, texts, transcripts, lang))
        if asr_texts and texts is not asr_texts:
            rows.append(_row(name, panel.asr.name if panel.asr else "", texts, asr_texts, lang))
    return rows


def _row(name: str, recogniser: str, texts: Sequence[str], transcripts: Sequence[str], lang: str) -> TranscriptRow:
    errors = count_errors(texts, transcripts, lang or "en")
    return TranscriptRow(name, recogniser, len(texts), error_name(lang), errors.rate, errors.exact_rate)
