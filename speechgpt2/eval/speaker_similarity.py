"""Speaker similarity by Resemblyzer (Wan et al. 2018, arXiv:1710.10467): the cosine between two voices' embeddings.

Read a similarity against two baselines: other recordings of the same speaker, and recordings of other speakers.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from speechgpt2.extras import require
from speechgpt2.types import SAMPLE_RATE

Embedding = NDArray[np.floating]  # [256], of length 1
Pair = tuple[Embedding | None, Embedding | None]
SHORTEST = 0.5  # seconds of speech below which an embedding is meaningless


class SpeakerEncoder:
    """Resemblyzer's encoder, whose weights are in its package.

    Raises:
        UserError: resemblyzer is not installed.
    """

    def __init__(self) -> None:
        self._library = require("resemblyzer", "eval")
        self._encoder = self._library.VoiceEncoder("cpu", verbose=False)

    def embed(self, pcm: NDArray[np.floating]) -> Embedding | None:
        """The embedding [256] of the voice in `pcm` [N] at 24 kHz; None where there is too little speech."""
        if not len(pcm) or not np.any(pcm):
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it uses names that SciPy has moved
            wave = self._library.preprocess_wav(np.asarray(pcm, dtype=np.float32), source_sr=SAMPLE_RATE)
        if len(wave) < SHORTEST * self._library.sampling_rate:
            return None
        return self._encoder.embed_utterance(wave)


def similarity(pairs: Sequence[Pair]) -> float:
    """The mean cosine of pairs of embeddings; nan without any complete pair."""
    known = [float(a @ b) for a, b in pairs if a is not None and b is not None]
    return float(np.mean(known)) if known else float("nan")


def baselines(embeddings: Sequence[Embedding | None], speakers: Sequence[str]) -> tuple[float, float]:
    """The mean similarity of different recordings of one speaker, and of recordings of different speakers.

    Args:
        embeddings: One for each recording.
        speakers: The speaker of each; "" for an unknown speaker, whose recordings are in no pair.
    """
    same: list[Pair] = []
    other: list[Pair] = []
    for i, a in enumerate(embeddings):
        for j in range(i):
            if speakers[i] and speakers[j]:
                (same if speakers[i] == speakers[j] else other).append((a, embeddings[j]))
    return similarity(same), similarity(other)
