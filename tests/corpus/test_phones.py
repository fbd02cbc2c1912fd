"""Phone labels of frames: those that occur often, or those that a run began with."""

from __future__ import annotations

import numpy as np

from speechgpt2.corpus.phones import MIN_COUNT, SILENCE, UNKNOWN, PhoneSet, save_labels, saved_labels
from speechgpt2.tts.utterance import Phone

SPOKEN = [Phone("a", 0.0, 0.08), Phone("ŋ", 0.12, 0.2)]  # of the frames 0, 1 and 3, 4


def test_frequent_labels_are_distinguished():
    phones = PhoneSet([*[SPOKEN] * MIN_COUNT, [Phone("rare", 0, 1)]])
    assert phones.names == ("", "a", "ŋ")
    assert phones.labels(SPOKEN, 6).tolist() == [1, 1, SILENCE, 2, 2, SILENCE]
    assert np.all(phones.labels([], 3) == UNKNOWN) and phones.labels([Phone("rare", 0, 1)], 1).tolist() == [UNKNOWN]


def test_run_keeps_its_labels_when_the_corpus_changes(tmp_path):
    assert saved_labels(tmp_path / "run") is None
    save_labels(tmp_path / "run", ("", "ŋ"))
    save_labels(tmp_path / "run", ("", "a", "b"))
    assert saved_labels(tmp_path / "run") == ("", "ŋ")
    assert PhoneSet([SPOKEN] * MIN_COUNT, saved_labels(tmp_path / "run")).labels(SPOKEN, 5).tolist() == [
        -1,
        -1,
        0,
        1,
        1,
    ]
