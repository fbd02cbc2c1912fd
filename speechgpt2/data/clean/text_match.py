"""Does the audio contain the text? The text is synthesised, and both are compared. Needs espeak-ng.

The comparison is dynamic time warping, as in forced alignment by synthesis (aeneas), on features that distinguish
phones (phone_features.py). Its cost also depends on voices and room. So it is divided by the cost of the same synthetic
audio in wrong orders. The result is well below 1 for the right text, and about 1 for a wrong one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from speechgpt2.data.clean.phone_features import features
from speechgpt2.data.pipeline.clip_audio import ClipAudio
from speechgpt2.data.pipeline.spectra import power_of
from speechgpt2.data.pipeline.stage import Stage
from speechgpt2.data.record import Clip
from speechgpt2.dsp.spectrum import power
from speechgpt2.tts.espeak import MANDARIN
from speechgpt2.tts.utterance import Voice
from speechgpt2.tts.voices import speak

VOICES = {"en": Voice("espeak", "m3", "en", "en-us"), "zh": Voice("espeak", "f3", "zh", MANDARIN, rate=200)}
LONGEST = 40.0  # seconds
SHORTEST = 25  # compared frames (half a second of audio)
BAND = 0.15  # share of the length by which two utterances may differ in time


def warping_cost(a: np.ndarray, b: np.ndarray) -> float:
    """Return the least mean distance of two sequences `[N, D]`, `[M, D]` along a monotonic path near the diagonal."""
    squares = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1) - 2 * a @ b.T
    n, m = squares.shape
    distance = np.sqrt(np.maximum(squares, 0)).ravel()
    reach = BAND * max(n, m) / 2 + 1
    # Least costs of the last two diagonals; cell i + 1 is row i.
    before, last = np.full(n + 1, np.inf), np.full(n + 1, np.inf)
    for diagonal in range(n + m - 1):
        centre = diagonal * n / (n + m - 1)
        rows = np.arange(max(0, diagonal - m + 1, int(centre - reach)), min(n, diagonal + 1, int(centre + reach) + 1))
        cost = distance[rows * m + (diagonal - rows)]
        arrival = np.minimum(np.minimum(last[rows], last[rows + 1]), before[rows] + cost)
        before, last = last, np.full(n + 1, np.inf)
        last[rows + 1] = cost if diagonal == 0 else arrival + cost
    return float(last[n]) / (n + m)


def mismatch(recording: np.ndarray, synthetic: np.ndarray) -> float:
    """Return the warping cost of two feature sequences, divided by that of the synthetic one in wrong orders.

    Args:
        recording: features of the recording `[N, D]`.
        synthetic: features of the synthetic speech `[M, D]`.
    """
    rotated = [np.roll(synthetic, len(synthetic) * sixths // 6, axis=0) for sixths in (2, 3, 4)]
    wrong = [warping_cost(recording, order) for order in (*rotated, np.ascontiguousarray(synthetic[::-1]))]
    return warping_cost(recording, synthetic) / float(np.mean(wrong))


@dataclass(frozen=True)
class TextMatchConfig:
    """Options of `TextMatch`: none."""

    kind: Literal["text_match"] = "text_match"


class TextMatch(Stage[TextMatchConfig]):
    """Sets `quality.extra.text_mismatch`, for English and Mandarin with a transcript, up to 40 seconds.

    Raises:
        UserError: espeak-ng's library or pypinyin is missing.
    """

    version = 2
    model = "espeak-ng"

    def __call__(self, clip: Clip, clip_audio: ClipAudio) -> Clip:
        """Return the clip with its mismatch."""
        voice = VOICES.get(clip.lang.code.split("-")[0])
        if voice is None or not clip.text.raw or clip.audio.duration > LONGEST:
            return clip
        try:
            synthetic = speak(clip.text.raw, voice).pcm
        except ValueError:  # a text that cannot be spoken
            return clip
        recording = features(power_of(clip_audio))
        if len(recording) < SHORTEST:
            return clip
        score = mismatch(recording, features(power(synthetic)))
        extra = {**clip.quality.extra, "text_mismatch": round(score, 4)}
        return replace(clip, quality=replace(clip.quality, extra=extra))
