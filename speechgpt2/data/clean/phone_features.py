"""Features in which two voices that say the same are close: cepstra with context, projected to distinguish phones.

Linear discriminant analysis (Haeb-Umbach and Ney 1992) of 180 ms of cepstra, fitted on synthetic speech with known
phones. The package has the projection (phone_features.npz, 8 kB). `python -m speechgpt2.data.clean.phone_features`
fits it again.
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
UTTERANCES, RARE = 400, 100  # utterances to fit on; phones with fewer frames are left out
STEP = 2  # frames between two features


def features(spectrum: np.ndarray) -> np.ndarray:
    """Return features `[about T / 2, DIMENSIONS]` float32 of the loud frames of power `[T, BINS]`."""
    mean, projection = _projection()
    seen, loud = _seen(spectrum)
    return ((seen[loud][::STEP] - mean) @ projection).astype(np.float32)


@cache
def _projection() -> tuple[np.ndarray, np.ndarray]:
    with np.load(FILE) as stored:
        return stored["mean"], stored["projection"]


def _seen(spectrum: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return cepstra with context, normalised by mean and spread, `[T, 84]`, and which frames are loud `[T]`."""
    level = decibels(spectrum.sum(axis=1))
    loud = level > np.quantile(level, 0.97) - 32
    mel = cepstra(spectrum, 12, 26, 5500.0)
    mel = (mel - mel[loud].mean(axis=0)) / (mel[loud].std(axis=0) + 1e-3)
    around = np.clip(np.arange(len(mel))[:, None] + OFFSETS, 0, len(mel) - 1)
    return mel[around].reshape(len(mel), -1), loud


def fit(utterances: int = UTTERANCES) -> tuple[np.ndarray, np.ndarray]:
    """Fit mean `[84]` and projection `[84, DIMENSIONS]` on synthetic speech of random training voices."""
    frames, labels = zip(*_labelled(utterances))
    seen, phones = np.concatenate(frames), np.concatenate(labels)
    names, counts = np.unique(phones, return_counts=True)
    kept = np.isin(phones, names[counts > RARE])
    seen, phones = seen[kept], phones[kept]
    mean = seen.mean(axis=0)
    within, between = np.zeros((2, seen.shape[1], seen.shape[1]))
    for name in np.unique(phones):
        own = seen[phones == name]
        shift = own.mean(axis=0) - mean
        within += np.cov(own.T) * len(own) / len(seen)
        between += np.outer(shift, shift) * len(own) / len(seen)
    spread, axes = np.linalg.eigh(within + 1e-2 * np.eye(len(within)))
    whitening = axes / np.sqrt(spread)
    worth, turned = np.linalg.eigh(whitening.T @ between @ whitening)
    best = slice(None, -DIMENSIONS - 1, -1)
    # Directions that separate phones better get more weight.
    return mean, (whitening @ turned)[:, best] * np.sqrt(np.maximum(worth[best], 0))


def _labelled(utterances: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield for each utterance its inputs `[N, 84]` and the phone of each frame `[N]`."""
    rng = random.Random("ears")
    for number in range(utterances):
        lang = ("en", "zh")[number % 2]
        utterance = speak(sentence(rng, lang), draw_voice(lang, rng))
        seen, loud = _seen(power(utterance.pcm))
        phones = np.full(len(seen), "", dtype="<U8")
        for phone in utterance.phones:
            label = re.sub(r"[0-9ː]", "", phone.label)  # neither tone nor length
            phones[int(phone.start * FRAMES_PER_SECOND) : int(phone.end * FRAMES_PER_SECOND)] = label
        used = loud & (phones != "")
        yield seen[used], phones[used]


if __name__ == "__main__":
    mean, projection = fit()
    made: dict[str, Any] = {"mean": mean.astype(np.float32), "projection": projection.astype(np.float32)}
    write_atomically(FILE, lambda scratch: np.savez(scratch, **made))
