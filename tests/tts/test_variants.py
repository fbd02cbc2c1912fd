"""Speakers drawn by number: the same for the same number, each another, and no other voice is touched by them."""

import numpy as np
import pytest

from speechgpt2.dsp.world_pitch import track_pitch
from speechgpt2.tts import variants
from speechgpt2.tts.utterance import Voice
from speechgpt2.tts.voices import speak
from tests import needs

TEXT = "How much is seven plus five?"
M3 = Voice("espeak", "m3", "en", "en-us")


@pytest.fixture
def said():
    return lambda name: speak(TEXT, Voice("espeak", name, "en", "en-us"))


def test_variant_number_gives_a_speaker():
    assert variants.variant_text(5) == variants.variant_text(5) != variants.variant_text(6)
    assert variants.variant_number(variants.variant_name(5)) == 5
    assert variants.variant_number("m3") is variants.variant_number("drawn") is None


def test_variants_have_human_formants_and_pitch():
    for number in range(200):
        lines = [line.split() for line in variants.variant_text(number).splitlines()]
        pitch = next([int(v) for v in values] for name, *values in lines if name == "pitch")
        assert 55 <= pitch[0] < pitch[1] <= 400
        first = next(int(values[1]) for name, *values in lines if name == "formant" and values[0] == "1")
        assert 55 <= first <= 175


@needs.extra("synthesis", "pyworld")
@needs.voice(M3)
def test_drawn_speaker_speaks_with_its_own_pitch(said):
    pitches = []
    for number in range(8):
        utterance = said(variants.variant_name(number))
        assert [word.text for word in utterance.words] == ["How", "much", "is", "seven", "plus", "five"]
        f0 = track_pitch(utterance.pcm)
        pitches.append(np.median(f0[f0 > 0]))
    assert max(pitches) > 1.3 * min(pitches)


@needs.voice(M3)
def test_shipped_voices_stay_what_they_were(said):
    """Drawing makes the library start anew on a data folder of its own."""
    before = said("m3")
    said(variants.variant_name(1))
    assert abs(len(said("m3").pcm) - len(before.pcm)) <= 240


def test_data_folder_is_mirrored_where_links_are_not_allowed(tmp_path, monkeypatch):
    data = tmp_path / "espeak-ng-data"
    (data / "voices" / "!v").mkdir(parents=True)
    (data / "voices" / "!v" / "m3").write_text("language variant\n")
    monkeypatch.setattr(variants.os, "symlink", refuse)
    mirror = variants.copy_data(data, tmp_path / "copy")
    variants.write_variant(3, mirror)
    assert (mirror / "voices" / "!v" / "m3").read_text() == "language variant\n"
    assert (mirror / "voices" / "!v" / "drawn3").read_text() == variants.variant_text(3)
    assert not (data / "voices" / "!v" / "drawn3").exists()


def refuse(*_):
    raise OSError("a required privilege is not held by the client")
