"""The phones of a corpus as labels of codec frames: an auxiliary target for models that recognise speech."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from speechgpt2 import hub
from speechgpt2.tts.utterance import Phone
from speechgpt2.types import FRAME_RATE

MIN_COUNT = 200  # a label that occurs less often counts as unknown
LABELS = "phones.json"
SILENCE, UNKNOWN = 0, -1


def saved_labels(run: Path) -> tuple[str, ...] | None:
    """Return the labels that `save_labels` has stored for a run; None before that."""
    path = run / LABELS
    return tuple(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def save_labels(run: Path, labels: Sequence[str]) -> None:
    """Store the labels of a run, once."""
    run.mkdir(parents=True, exist_ok=True)
    if not (run / LABELS).exists():
        text = json.dumps(labels, ensure_ascii=False)
        hub.write_atomically(run / LABELS, lambda scratch: scratch.write_text(text, encoding="utf-8"))


class PhoneSet:
    """The phone labels.

    Args:
        utterances: The phones of each utterance; labels that occur often enough become names.
        names: The names instead, as of an earlier run; the first is silence.
    """

    def __init__(self, utterances: Iterable[Sequence[Phone]], names: Sequence[str] | None = None):
        if names is None:
            counts = Counter(phone.label for phones in utterances for phone in phones)
            names = ("", *sorted(label for label, n in counts.items() if n >= MIN_COUNT))
        self.names = tuple(names)
        self.index = {label: i for i, label in enumerate(self.names)}

    def labels(self, phones: Sequence[Phone], frames: int) -> np.ndarray:
        """Return the phone at the middle of each frame, `[frames]` int64; 0 between phones, −1 if unknown."""
        if not phones:
            return np.full(frames, UNKNOWN, np.int64)
        labels = np.full(frames, SILENCE, np.int64)
        middles = (np.arange(frames) + 0.5) / FRAME_RATE
        for phone in phones:
            first, end = np.searchsorted(middles, (phone.start, phone.end))
            labels[first:end] = self.index.get(phone.label, UNKNOWN)
        return labels
