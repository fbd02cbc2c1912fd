"""Features that distinguish phones and hardly depend on the voice: a projection of cepstra with context.

The projection is a linear discriminant analysis (Haeb-Umbach and Ney 1992) of 180 ms of cepstra, fitted on synthetic
speech with known phones. The package has the projection (phone_features.npz, 8 kB).
`python -m speechgpt2.data.clean.phone_features` fits it again.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from speechgpt2.curriculum.sentences import sentence
from speechgpt2.dsp.spectrum import FRAMES_PER_SECOND, cepstra, decibels, power
from speechgpt2.hub import write_atomically
from speechgpt2.tts.voices import draw_voice, speak

FILE = Path(__file__).with_name("phone_features.npz")
OFFSETS = np.arange(-9, 10, 3)  # context frames
DIMENSIONS = 20
UTTERANCES, MIN_FRAMES = 400, 100  # utterances to fit on; phones with fewer frames are left out
STEP = 2  # frames between two features


def features(spectrum: np.ndarray) -> np.ndarray:
    """Return features `[about T / 2, DIMENSIONS]` float32 of the loud frames of power `[T, BINS]`."""
    mean, projection = _projection()
    inputs, loud = _inputs(spectrum)
    return ((inputs[loud][::STEP] - mean) @ projection).astype(np.float32)


@cache
def _projection() -> tuple[np.ndarray, np.ndarray]:
    with np.load(FILE) as stored:
        return stored["mean"], stored["projection"]


def _inputs(spectrum: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return cepstra with context, normalised by mean and spread, `[T, 84]`, and which frames are loud `[T]`."""
    level = decibels(spectrum.sum(axis=1))
    loud = level > np.quantile(level, 0.97) - 32
    mel = cepstra(spectrum, 12, 26, 5500.0)
    mel = (mel - mel[loud].mean(axis=0)) / (mel[loud].std(axis=0) + 1e-3)
    context = np.clip(np.arange(len(mel))[:, None] + OFFSETS, 0, len(mel) - 1)
    return mel[context].reshape(len(mel), -1), loud


def fit(utterances: int = UTTERANCES) -> tuple[np.ndarray, np.ndarray]:
    """Fit mean `[84]` and projection `[84, DIMENSIONS]` on synthetic speech of random training voices."""
    frames, labels = zip(*_labelled(utterances))
    inputs, phones = np.concatenate(frames), np.concatenate(labels)
    names, counts = np.unique(phones, return_counts=True)
    frequent = np.isin(phones, names[counts > MIN_FRAMES])
    inputs, phones = inputs[frequent], phones[frequent]
    mean = inputs.mean(axis=0)
    within, between = np.zeros((2, inputs.shape[1], inputs.shape[1]))
    for name in np.unique(phones):
        group = inputs[phones == name]
        shift = group.mean(axis=0) - mean
        within += np.cov(group.T) * len(group) / len(inputs)
        between += np.outer(shift, shift) * len(group) / len(inputs)
    spread, axes = np.linalg.eigh(within + 1e-2 * np.eye(len(within)))
    whitening = axes / np.sqrt(spread)
    gains, directions = np.linalg.eigh(whitening.T @ between @ whitening)
    best = slice(None, -DIMENSIONS - 1, -1)
    # Directions that separate phones better get more weight.
    return mean, (whitening @ directions)[:, best] * np.sqrt(np.maximum(gains[best], 0))


def _labelled(utterances: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield for each utterance its inputs `[N, 84]` and the phone of each frame `[N]`."""
    rng = random.Random("ears")
    for number in range(utterances):
        lang = ("en", "zh")[number % 2]
        utterance = speak(sentence(rng, lang), draw_voice(lang, rng))
        inputs, loud = _inputs(power(utterance.pcm))
        phones = np.full(len(inputs), "", dtype="<U8")
        for phone in utterance.phones:
            label = re.sub(r"[0-9ː]", "", phone.label)  # neither tone nor length
            phones[int(phone.start * FRAMES_PER_SECOND) : int(phone.end * FRAMES_PER_SECOND)] = label
        used = loud & (phones != "")
        yield inputs[used], phones[used]


if __name__ == "__main__":
    mean, projection = fit()
    arrays: dict[str, Any] = {"mean": mean.astype(np.float32), "projection": projection.astype(np.float32)}
    write_atomically(FILE, lambda scratch: np.savez(scratch, **arrays))
