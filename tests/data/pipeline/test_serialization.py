"""What a run files for itself: every field comes back, and nothing is filed that cannot."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from speechgpt2.data.pipeline import serialization
from speechgpt2.data.record import Clip, Decision, Label
from tests import needs
from tests.data.pipeline.test_record import FULL

needs.module("msgspec", "data")


def test_clips_come_back(tmp_path):
    clips = [FULL, Clip("a"), replace(FULL, title="line\nline\u2028")]
    serialization.write(tmp_path / "clips.jsonl", clips)
    assert list(serialization.read(tmp_path / "clips.jsonl")) == clips
    assert [path.name for path in tmp_path.iterdir()] == ["clips.jsonl"]


def test_changes_come_back():
    changes = [
        serialization.difference(Clip("a"), FULL),
        serialization.difference(FULL, Clip("a")),
        serialization.difference(FULL, FULL),
    ]
    assert replace(Clip("a"), **changes[0]) == FULL and replace(FULL, **changes[1]) == Clip("a") and changes[2] == {}
    rejection = Decision("snr", 1, False, score=0.1 + 0.2)
    assert serialization.unpack(serialization.pack(changes, rejection)) == (tuple(changes), rejection)


def test_integers_and_numpy_numbers_become_plain():
    [change], _ = serialization.unpack(
        serialization.pack([{"quality": replace(FULL.quality, snr=np.float64(3), loudness=-20)}], None)
    )
    assert type(change["quality"].snr) is type(change["quality"].loudness) is float


@pytest.mark.parametrize("value", [math.nan, math.inf, "loud", [1.0], object()])
def test_nan_is_not_stored(value):
    with pytest.raises(ValueError):
        serialization.difference(FULL, replace(FULL, quality=replace(FULL.quality, snr=value)))


def test_content_hash_ignores_decisions():
    same = [replace(FULL, decisions=()), replace(FULL, quality=replace(FULL.quality))]
    assert {serialization.content_hash(clip) for clip in same} == {serialization.content_hash(FULL)}
    label = Label("x")
    one, two = (replace(FULL, labels_from=labels) for labels in ({"a": label, "b": label}, {"b": label, "a": label}))
    assert serialization.content_hash(one) == serialization.content_hash(two) != serialization.content_hash(FULL)
