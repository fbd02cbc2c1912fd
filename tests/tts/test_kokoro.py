"""Kokoro as an engine, with a function of tones in place of the network; with the real one if `SG2_KOKORO` names it."""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from speechgpt2.download import RemoteFile
from speechgpt2.errors import UserError
from speechgpt2.tts import kokoro, kokoro_text
from speechgpt2.tts.kokoro_text import SYMBOLS
from speechgpt2.tts.utterance import Voice
from speechgpt2.tts.voice_sets import KOKORO_HELD_OUT, VOICE_SETS, draw_natural, voice_set
from speechgpt2.tts.voices import speak, vary_voice
from speechgpt2.types import SAMPLE_RATE
from tests import needs

ENGLISH = "Of the three, one is twenty-one. I don't know it."
FRAMES = 4  # of each symbol, by the network of the tests
HEART, ADAM = Voice("kokoro", "af_heart", "en"), Voice("kokoro", "am_adam", "en")


def tones(ids, style, speed):
    """A network: a tone of 100 Hz + 10 Hz for each letter, silence for pauses; as loud as the style says."""
    time = np.arange(FRAMES * kokoro.FRAME) / SAMPLE_RATE
    letters = {token for symbol, token in SYMBOLS.items() if symbol not in ' ;:,.!?—…"()“”'}
    waves = [np.sin(2 * np.pi * (100 + 10 * token) * time) * (token in letters) for token in ids.tolist()]
    samples = torch.from_numpy(np.concatenate(waves).astype(np.float32)) * style[0]
    return samples, torch.full((len(ids),), FRAMES)


def remote(path: Path, url: str) -> RemoteFile:
    return RemoteFile(url, hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)


pytestmark = needs.extra("kokoro", "espeakng_loader")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with styles of the right kind and a file that stands for a network of `tones`."""
    model, styles = tmp_path / kokoro.MODEL.name, tmp_path / "voices.npz"
    model.write_bytes(b"a network of tones")
    loudness = {name: 0.1 + 0.01 * i for i, name in enumerate(kokoro.VOICES)}
    np.savez(styles, **{name: np.full((510, 1, 256), value, np.float32) for name, value in loudness.items()})
    monkeypatch.setenv(kokoro.FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setattr(kokoro, "MODEL", remote(model, kokoro.MODEL.url))
    monkeypatch.setattr(kokoro, "STYLES", remote(styles, kokoro.STYLES.url))
    monkeypatch.setattr(kokoro, "_load", lambda path: tones)
    kokoro._engine.cache_clear()
    yield tmp_path
    kokoro._engine.cache_clear()


def loudest(pcm: np.ndarray) -> float:
    return float(np.abs(np.fft.rfft(pcm * np.hanning(len(pcm)))).argmax() * SAMPLE_RATE / len(pcm))


def test_times_are_those_of_the_audio(folder):
    said = speak(ENGLISH, HEART)
    assert [w.text for w in said.words] == ENGLISH.replace(",", "").replace(".", "").split()
    edges = [t for phone in said.phones for t in (phone.start, phone.end)]
    assert edges == sorted(edges) and edges[-1] <= said.duration
    checked = 0
    for phone in said.phones:
        if phone.label in SYMBOLS and phone.end - phone.start < 0.11:  # one symbol, no stress mark, no shared space
            middle = said.pcm[round(phone.start * SAMPLE_RATE) : round(phone.end * SAMPLE_RATE)]
            letter = {"ɾ": "T"}.get(phone.label, phone.label)
            assert loudest(middle) == pytest.approx(100 + 10 * SYMBOLS[letter], abs=12)
            checked += 1
    assert checked > 5


def test_space_is_shared_and_punctuation_is_silence(folder):
    of, the, three, one, *_ = speak(ENGLISH, HEART).words
    assert of.end == the.start and the.end == three.start
    assert one.start - three.end == pytest.approx(2 * FRAMES * kokoro.FRAME / SAMPLE_RATE, abs=1e-3)


def test_equal_arguments_give_equal_samples(folder):
    assert np.array_equal(speak(ENGLISH, HEART).pcm, speak(ENGLISH, HEART).pcm)


def test_mixture_averages_styles(folder):
    engine = kokoro.KokoroModel(tones, folder / "voices.npz")
    heart, adam = engine.style("af_heart"), engine.style("am_adam")
    assert engine.style("af_heart:3+am_adam:1") == pytest.approx(0.75 * heart + 0.25 * adam)
    assert engine.style(kokoro.mixture({"af_heart": 1})) == pytest.approx(heart)


def test_long_text_is_read_in_parts(folder):
    text = "The quick brown fox jumps over the lazy dog, and sleeps. " * 14
    said = speak(text, HEART)
    assert [w.text for w in said.words] == text.replace(",", "").replace(".", "").split()
    assert said.words[-1].end == pytest.approx(said.duration, abs=0.1)


@pytest.mark.parametrize(
    "voice, text, error, message",
    [
        (replace(HEART, name="af_nobody"), "hello", UserError, "no voice 'af_nobody'"),
        (replace(HEART, name="af_heart:0"), "hello", UserError, "no voice"),
        (replace(HEART, name="af_heart+"), "hello", UserError, "no voice"),
        (replace(HEART, lang="fr"), "salut", UserError, r"English \(en\) and Mandarin \(zh\), not 'fr'"),
        (HEART, "hello 你好", ValueError, "cannot read '你好'"),
        (HEART, "...", ValueError, "finds no words"),
        (HEART, "-".join(["banana"] * 150), ValueError, "a word of more than 500"),
    ],
)
def test_text_that_a_voice_cannot_read_is_rejected(folder, voice, text, error, message):
    with pytest.raises(error, match=message):
        speak(text, voice)


@needs.extra("kokoro", "jieba", "misaki.zh", "pypinyin")
def test_mandarin_needs_hanzi():
    with pytest.raises(ValueError, match="no Mandarin reading for 'W'"):
        kokoro_text.mandarin("用WiFi")


@needs.extra("kokoro", "jieba", "misaki.zh", "pypinyin")
def test_mandarin_characters_carry_tones():
    tokens = kokoro_text.mandarin("银行很远，女儿呢？")
    assert [token.text for token in tokens] == list("银行很远女儿呢")
    labels = ["".join(unit.label for unit in token.units) for token in tokens]
    assert labels == ["i2n", "xa2ŋ", "xə3n", "ɥɛ3n", "ny3", "ɚ2", "nɤ5"]
    assert [token.after for token in tokens if token.after.strip()] == [", ", "? "]


def test_accents_have_their_own_phonemes():
    def said(british: bool) -> str:
        return "".join(unit.symbols for token in kokoro_text.english("go near", british) for unit in token.units)

    assert "O" in said(False) and "Q" in said(True) and "ː" not in said(False)


@pytest.mark.parametrize("broken", ["missing", "cut", "other"])
def test_files_that_are_not_the_model(folder, monkeypatch, broken):
    path = folder / kokoro.MODEL.name
    if broken == "missing":
        path.unlink()
    elif broken == "cut":
        path.write_bytes(path.read_bytes()[:-10])
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"\0")
    complaint = {"missing": "no such file", "cut": "cut short", "other": "another version"}[broken]
    with pytest.raises(UserError, match=complaint) as error:
        kokoro.find_files()
    assert "Kokoro-82M v1.0" in str(error.value) and "\n" not in str(error.value)


def test_held_out_voices_are_never_drawn():
    held_out = {name for names in KOKORO_HELD_OUT.values() for name in names}
    rng = random.Random(0)
    for lang in ("en", "zh"):
        drawn = [VOICE_SETS["natural"].draw(lang, rng) for _ in range(400)]
        natural = [kokoro.parse_mixture(voice.name) for voice in drawn if voice.engine == "kokoro"]
        assert held_out.isdisjoint(name for names in natural for name in names)
        assert len({frozenset(names) for names in natural}) > 100
        assert any(len(names) == 3 for names in natural) and any(len(names) == 1 for names in natural)
        assert {voice.name for voice in VOICE_SETS["natural"].held_out[lang]} <= held_out
    assert all(draw_natural("zh", rng).engine == "kokoro" for _ in range(20))
    assert not any(VOICE_SETS["natural"].draw("zh", rng).engine == "espeak" for _ in range(200))


def test_each_language_has_two_natural_assistants():
    for lang, voices in voice_set("natural").assistant.items():
        assert len({voice.name for voice in voices}) >= 2 and all(voice.lang == lang for voice in voices)
        assert {voice.name for voice in voices}.isdisjoint(KOKORO_HELD_OUT[lang])
    with pytest.raises(UserError, match="classic, natural"):
        voice_set("robots")


def test_vary_changes_rate_and_level_only():
    other = vary_voice(HEART, random.Random(1))
    assert other.speaker == HEART.speaker and other.rate != HEART.rate
    assert replace(other, rate=HEART.rate, gain=HEART.gain) == HEART
    assert HEART.id != ADAM.id


@needs.voice(HEART)
def test_real_model_is_quiet_at_a_full_stop():
    kokoro._engine.cache_clear()
    said = speak(ENGLISH, HEART)
    *_, before, after, _, _, _ = said.words  # twenty-one. I don't know it.
    pause = said.pcm[int(before.end * SAMPLE_RATE) : int(after.start * SAMPLE_RATE)]
    assert len(pause) and np.square(pause).mean() < 0.01 * np.square(said.pcm).mean()
    assert np.array_equal(said.pcm, speak(ENGLISH, HEART).pcm)
    faster = speak(ENGLISH, replace(HEART, rate=219))
    assert faster.duration == pytest.approx(said.duration / 1.25, rel=0.1)
