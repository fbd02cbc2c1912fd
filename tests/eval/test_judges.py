"""The judges: what is missing is said; DNSMOS and speaker embeddings are the real ones where they are installed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soxr
from typer.testing import CliRunner

from speechgpt2 import audio, dnsmos
from speechgpt2.asr import Transcription
from speechgpt2.cli import app
from speechgpt2.dnsmos import DnsMos
from speechgpt2.errors import UserError
from speechgpt2.eval import judges
from speechgpt2.eval.speaker_similarity import SpeakerEncoder, baselines, similarity
from tests import needs

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def question():
    return audio.load(EXAMPLES / "question-1.wav")


def test_without_packages_there_are_notes(monkeypatch):
    dnsmos.packaged.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "resemblyzer", None)
    panel = judges.load()
    assert (panel.asr, panel.mos, panel.speaker) == (None, None, None)
    assert panel.notes[0] == judges.NO_ASR
    assert any(note.startswith("No DNSMOS: ") for note in panel.notes)
    assert any(note.startswith("No speaker similarity: resemblyzer is not installed") for note in panel.notes)
    assert (
        not panel.knows("en") and np.isnan(panel.mean_opinion([np.ones(9, np.float32)])) and panel.embed([1]) == [None]
    )
    dnsmos.packaged.cache_clear()


def test_judge_is_named_and_knows_its_languages(monkeypatch):
    fake = SimpleNamespace(
        name="fake", languages={"en"}, independent=True, transcribe=lambda pcm, lang: Transcription(f"{lang}!", lang)
    )
    monkeypatch.setattr(judges.asr, "load", lambda model, threads: fake)
    panel = judges.load("x")
    assert panel.asr is fake and judges.NO_ASR not in panel.notes
    assert panel.knows("en") and panel.knows("") and not panel.knows("zh")
    assert panel.transcribe([np.ones(1)], "en") == ["en!"]
    fake.independent = False
    with pytest.raises(UserError, match="x: a model of this project is not an independent judge"):
        judges.load("x")


@pytest.mark.parametrize("command", ["codec", "speech", "mini"])
def test_folder_without_asr_model_is_a_clear_error(command, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_whisper", SimpleNamespace())
    for model, words in ((tmp_path, "not an ASR model, it holds no model.bin"), (tmp_path / "x", "no such ASR model")):
        result = CliRunner().invoke(app, ["eval", command, "--asr", str(model)])
        assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1
        assert result.stderr.startswith(f"error: {model}: {words}")


def test_similarity_lies_between_its_baselines():
    a, b = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    assert similarity([(a, a), (a, b), (None, b)]) == 0.5 and np.isnan(similarity([(None, a)]))
    same, other = baselines([a, a, b, b, None], ["x", "x", "y", "", "x"])
    assert (same, other) == (1.0, 0.0)


@needs.extra("eval", "resemblyzer")
def test_speaker_is_nearer_to_itself(question):
    encoder = SpeakerEncoder()
    half = len(question) // 2
    first, second = encoder.embed(question[:half]), encoder.embed(question[half:])
    lower = encoder.embed(soxr.resample(question, 24_000, 36_000).astype(np.float32))
    assert first @ first == pytest.approx(1.0, abs=1e-3) and first @ second > first @ lower
    assert encoder.embed(np.zeros(0, np.float32)) is encoder.embed(np.zeros(24_000, np.float32)) is None


@needs.extra("eval", "speechmos", "librosa", "onnxruntime")
def test_dnsmos_is_that_of_speechmos(question):
    scorer = DnsMos()
    long = np.tile(question, 6)[: 10 * 24_000]
    theirs = needs.module("speechmos.dnsmos", "eval").run(soxr.resample(long, 24_000, 16_000).clip(-1, 1), 16_000)
    assert scorer.score(long) == pytest.approx((theirs["sig_mos"], theirs["bak_mos"], theirs["ovrl_mos"]), abs=1e-3)
    noise = np.random.default_rng(0).normal(size=len(question)).astype(np.float32) * 0.1
    assert scorer.score(question + noise).overall < scorer.score(question).overall - 0.3
    assert np.isnan(scorer.score(np.zeros(0, np.float32)).overall)


@needs.extra("eval", "speechmos", "onnxruntime")
def test_file_that_is_not_dnsmos_is_a_clear_error(tmp_path):
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(dnsmos.packaged().read_bytes()[:1000])
    other = Path(dnsmos.__file__).parent / "assets" / "silero_vad.onnx"
    for path, words in {
        tmp_path / "absent.onnx": "no such file; DNSMOS needs sig_bak_ovr.onnx",
        cut: "the file is damaged or cut short",
        other: "another kind, not DNSMOS",
    }.items():
        with pytest.raises(UserError, match=words) as error:
            DnsMos(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
