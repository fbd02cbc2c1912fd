"""Prosody of sounds whose prosody is known: pitch, level, rate and pauses as they were put in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from speechgpt2.data.annotate.prosody import MeasureProsody, ProsodyConfig, melody, nuclei, syllables
from speechgpt2.data.pipeline.clip_audio import ClipAudio, Workspace
from speechgpt2.data.record import AudioInfo, Clip, Label, Prosody
from speechgpt2.dsp.spectrum import power
from speechgpt2.tts.utterance import Alignment, Word
from speechgpt2.types import SAMPLE_RATE


def voice(hertz, envelope):
    """A buzz with a falling spectrum; `hertz` and `envelope` [N]."""
    phase = 2 * np.pi * np.cumsum(hertz) / SAMPLE_RATE
    return (envelope * sum(np.sin(k * phase) / k for k in range(1, 12))).astype(np.float32)


def syllable_train(counts, seconds=0.25, pause=0.5, hertz=200.0):
    """Groups of syllables of `seconds`, `pause` apart, at a level of 0.1."""
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    one = np.sqrt(np.maximum(0.02, np.sin(np.pi * time / seconds))) * 0.1
    gap = np.zeros(round(pause * SAMPLE_RATE))
    envelope = np.concatenate([part for count in counts for part in (*[one] * count, gap)][:-1])
    return voice(np.full(len(envelope), hertz), envelope)


def measured(tmp_path, pcm, gain=0.0, **fields):
    workspace = Workspace(tmp_path, tmp_path)
    name, samples = workspace.add_recording([pcm])
    info = AudioInfo("", SAMPLE_RATE, 1, 0.0, samples / SAMPLE_RATE, "FLAC", name, gain)
    clip = Clip("x", audio=info, **fields)
    return MeasureProsody(ProsodyConfig())(clip, ClipAudio(clip, workspace))


def test_prosody_matches_the_synthesised_voice(tmp_path):
    clip = measured(tmp_path, syllable_train([6, 4, 5]))
    found = clip.prosody
    assert found.f0_mean == pytest.approx(200, abs=1.0) and found.f0_std < 0.3
    assert found.rate == pytest.approx(4.0, rel=0.1)
    assert found.pauses == pytest.approx((0.5, 0.5), abs=0.06)
    assert clip.labels_from["prosody.rate"].tool == "energy-peaks"
    assert clip.labels_from["prosody"].tool == "autocorrelation"
    assert Clip.from_json(clip.to_json()) == clip


def test_energy_does_not_depend_on_the_gain(tmp_path):
    pcm = syllable_train([6, 6])
    plain, raised, loud = measured(tmp_path, pcm), measured(tmp_path, pcm, gain=6.0), measured(tmp_path, 2 * pcm)
    speaking = pcm[np.abs(pcm) > 0]
    assert plain.prosody.energy == pytest.approx(10 * np.log10(np.square(speaking).mean()), abs=1.0)
    assert raised.prosody.energy == pytest.approx(plain.prosody.energy, abs=0.05)
    assert loud.prosody.energy == pytest.approx(plain.prosody.energy + 6.02, abs=0.05)


def test_with_an_alignment_the_text_is_counted(tmp_path):
    words = (Word("seven", 0.0, 0.5), Word("apples", 0.5, 1.0), Word("yesterday", 1.4, 2.0))
    clip = measured(tmp_path, syllable_train([8]), align=Alignment(words))
    assert clip.prosody.rate == pytest.approx(7 / 1.6, abs=1e-3)
    assert clip.prosody.pauses == (0.4,)
    assert clip.labels_from["prosody.rate"].tool == "text"


def test_unvoiced_clips_get_no_pitch_and_ground_truth_stays(tmp_path):
    noise = np.random.default_rng(0).standard_normal(2 * SAMPLE_RATE) * 0.05
    hiss = measured(tmp_path, noise.astype(np.float32)).prosody
    assert hiss.f0_mean is None and hiss.energy is not None
    assert measured(tmp_path, np.zeros(SAMPLE_RATE, np.float32)).prosody == Prosody()
    known = replace(Prosody(), rate=3.0)
    truth = measured(
        tmp_path, syllable_train([3]), prosody=known, labels_from={"prosody": Label("synthesis", kind="truth")}
    )
    assert truth.prosody == known


def test_octave_errors_do_not_count_as_melody():
    track = np.full(100, 200.0)
    track[::10], track[1::10] = 0.0, 402.0
    found = melody(track, 100)
    assert found.f0_mean == 200.0 and found.f0_std == 0.0 and found.f0_high == 200.0
    assert melody(np.zeros(50), 50) == Prosody()
    assert melody(track, 400) == Prosody()  # a whisper with a vowel that slipped
    lively = melody(200 * 2 ** (np.sin(np.arange(1000) / 50) * 3 / 12), 1000)
    assert lively.f0_std == pytest.approx(3 / np.sqrt(2), rel=0.02)


@pytest.mark.parametrize("count", [1, 7, 20])
def test_syllables_are_peaks_of_energy(count):
    assert len(list(nuclei(power(syllable_train([count], pause=0.1))))) == count
    assert not list(nuclei(power(np.zeros(SAMPLE_RATE, np.float32))))


def test_syllables_of_words():
    right = {
        "seven": 2, "apples": 2, "yesterday": 3, "home": 1, "homes": 1, "horses": 2, "table": 2, "washed": 1,
        "wanted": 2, "beyond": 2, "lion": 2, "nation": 2, "million": 2, "I": 1, "the": 1, "rhythm": 1, "don't": 1,
        "学": 1, "学校": 2, "Zürich": 1, "42": 1, "": 1,
    }  # fmt: skip
    assert {word: syllables(word) for word in right} == right
