"""Recordings of people: which of them are held out, by their names alone."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from speechgpt2.corpus.real_speech import find_recordings, load_recording
from speechgpt2.errors import UserError
from speechgpt2.eval.speech_sets import recorded
from speechgpt2.types import SAMPLE_RATE
from tests import needs


def tone(seconds: float) -> np.ndarray:
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return (0.2 * np.sin(2 * np.pi * 150 * time)).astype(np.float32)


@pytest.fixture
def folder(tmp_path):
    for number in range(200):
        path = tmp_path / "orders" / f"order-{number:03d}.ogg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    (tmp_path / "fsdd").mkdir()
    for speaker in ("george", "theo", "lucas", "yweweler"):
        soundfile.write(tmp_path / "fsdd" / f"3_{speaker}_0.wav", tone(0.5), SAMPLE_RATE)
    return tmp_path


def test_some_orders_and_three_speakers_of_digits_are_held_out(folder):
    found = find_recordings(folder)
    orders = [r for r in found if r.source == "orders"]
    test = {r.path.name for r in orders if r.split == "test"}
    assert len(orders) == 200 and 3 <= len(test) <= 20
    assert test == {r.path.name for r in find_recordings(folder) if r.source == "orders" and r.split == "test"}
    assert all(r.text == "" and r.lang == "en" for r in orders)
    assert {r.speaker for r in found if r.source == "fsdd" and r.split == "train"} == {"real/fsdd-george"}


@needs.extra("synthesis", "pyworld")
def test_evaluation_uses_held_out_orders_only(folder):
    held_out = [r for r in find_recordings(folder) if r.source == "orders" and r.split == "test"]
    for number, recording in enumerate(held_out):
        soundfile.write(recording.path, tone(1 + 0.1 * number), SAMPLE_RATE)
    sets = recorded(folder, 100)
    assert sorted(len(clip.pcm) for clip in sets["coffee orders"]) == pytest.approx(
        [round((1 + 0.1 * number) * SAMPLE_RATE) for number in range(len(held_out))], abs=960
    )
    assert {clip.speaker for clip in sets["coffee orders"]} == {""}  # many people, who are not named
    item = load_recording(held_out[0])
    assert item is not None and item.record.extra == {"source": "orders"} and not item.record.words


@needs.extra("synthesis", "pyworld")
def test_characters_of_a_word_share_its_time(folder):
    (folder / "cmn" / "words").mkdir(parents=True)
    soundfile.write(folder / "cmn" / "words" / "cmn-下午.mp3", tone(0.8), SAMPLE_RATE)
    (recording,) = (r for r in find_recordings(folder) if r.source == "cmn-words")
    first, last = load_recording(recording).record.words
    assert (first.text, last.text) == ("下", "午") and first.end == last.start
    assert first.end - first.start == pytest.approx(last.end - last.start, abs=0.002) and last.end < 0.8


@needs.extra("synthesis", "pyworld")
def test_evaluation_keeps_single_words_by_their_text(folder):
    for order in (folder / "orders").iterdir():
        order.unlink()
    with pytest.raises(UserError):
        recorded(folder, 100, join_words=False, keeps=lambda word: word == "four")
    assert len(recorded(folder, 100, join_words=False, keeps=lambda word: word == "three")["English digits"]) == 3
