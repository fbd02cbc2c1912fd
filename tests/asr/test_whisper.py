"""Whisper: its interface by a fake, its bad input, and the real model where SG2_WHISPER names its folder."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from speechgpt2 import asr, audio
from speechgpt2.asr.own_model import OwnModel
from speechgpt2.asr.registry import ENGINES, AsrEngine
from speechgpt2.errors import UserError
from tests import needs

EXAMPLES = Path(__file__).parents[2] / "examples"
REAL = needs.model("SG2_WHISPER")


@pytest.fixture
def folder(tmp_path):
    """A folder that looks like a Whisper model."""
    model = tmp_path / "whisper-small"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"suppress_ids": [], "lang_ids": []}))
    for name in ("model.bin", "tokenizer.json"):
        (model / name).write_bytes(b"cut")
    return model


class FakeModel:
    """The interface of `faster_whisper.WhisperModel`; keeps how it was called."""

    calls: list[dict] = []  # noqa: RUF012 (shared on purpose)
    supported_languages = ("en", "zh")

    def __init__(self, path, **options):
        self.calls.append({"path": path, **options})

    def transcribe(self, pcm, **options):
        self.calls.append({"samples": len(pcm), "dtype": pcm.dtype, **options})
        word = SimpleNamespace(word=" Hello", start=np.float64(0.1), end=0.4567)
        segments = [SimpleNamespace(text=" Hello", words=[word]), SimpleNamespace(text=" there.", words=None)]
        return iter(segments), SimpleNamespace(language=options["language"] or "en")


@pytest.fixture
def fake(monkeypatch):
    FakeModel.calls.clear()
    monkeypatch.setitem(sys.modules, "faster_whisper", SimpleNamespace(WhisperModel=FakeModel))
    return FakeModel


def test_decoding_is_deterministic_and_in_the_language_given(fake, folder):
    recogniser = asr.load(folder, threads=2, word_times=True)
    result = recogniser.transcribe(np.zeros(24_000, np.float64), "zh-CN")
    loading, decoding = fake.calls
    assert loading["cpu_threads"] == 2 and loading["local_files_only"] and loading["device"] == "cpu"
    assert decoding["samples"] == 16_000 and decoding["dtype"] == np.float32 and decoding["language"] == "zh"
    assert decoding["beam_size"] == 5 and decoding["temperature"] == 0.0
    assert decoding["condition_on_previous_text"] is False and decoding["word_timestamps"]
    assert result == asr.Transcription("Hello there.", "zh", (asr.TimedWord("Hello", 0.1, 0.457),))
    assert (recogniser.name, recogniser.independent) == ("whisper-small", True)
    assert recogniser.transcribe(np.zeros(0, np.float32), "en").text == "" and len(fake.calls) == 2
    with pytest.raises(UserError, match="whisper-small does not recognise the language 'de'"):
        recogniser.transcribe(np.zeros(24_000, np.float32), "de")


def broken(folder, **files):
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        path.unlink() if content is None else path.write_text(content)
    return folder


def test_folder_without_whisper_model_is_a_clear_error(fake, folder, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    hugging_face = tmp_path / "openai-whisper"
    hugging_face.mkdir()
    (hugging_face / "config.json").write_text("{}")
    (hugging_face / "model.safetensors").touch()
    for model, words in {
        tmp_path / "absent": "no such ASR model; give a folder",
        folder / "model.bin": "a file, but an ASR model is a folder",
        empty: "holds no model.bin; give the folder of a faster-whisper model",
        hugging_face: "convert it: ct2-transformers-converter",
    }.items():
        fails(model, words)
    fails(broken(folder, tokenizer__json=None), "holds no tokenizer.json")
    fails(broken(folder, config__json="{}"), "another kind, not Whisper")
    fails(broken(folder, config__json="{"), "the file is damaged")
    fails(broken(folder, config__json=None), "holds no config.json")
    with pytest.raises(UserError, match="no ASR engine 'wisper'; there are pocketsphinx"):
        asr.load(folder, engine="wisper")


def fails(model, words):
    with pytest.raises(UserError) as error:
        asr.load(model)
    assert words in str(error.value) and str(model) in str(error.value) and "\n" not in str(error.value)


def test_missing_extra_is_named(monkeypatch, folder):
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    with pytest.raises(UserError, match=r"faster_whisper is not installed; run: pip install 'speechgpt2\[asr\]'"):
        asr.load(folder)


@needs.extra("asr", "faster_whisper")
def test_cut_weights_are_one_clear_line(folder):
    fails(folder, "cannot be loaded as a Whisper model, its files may be cut")


def test_new_recogniser_is_one_entry(monkeypatch):
    mute = OwnModel(SimpleNamespace(transcribe=lambda pcm: "hm…"), "mute")
    monkeypatch.setitem(ENGINES, "mute", AsrEngine(lambda model: model == "mute", lambda model, threads, words: mute))
    assert asr.load("mute", engine="mute") is mute and not mute.independent


def test_model_of_this_project_is_a_recogniser():
    recogniser = asr.load("mini")
    result = recogniser.transcribe(audio.load(EXAMPLES / "question-1.wav"), "en")
    assert asr.count_errors(["What is three plus five?"], [result.text], "en").errors <= 1
    assert recogniser.name == "mini" and not recogniser.independent


@REAL
@needs.extra("asr", "faster_whisper")
def test_real_model_transcribes_both_languages():
    recogniser = asr.load(os.environ["SG2_WHISPER"], word_times=True)
    english, mandarin = (audio.load(EXAMPLES / f"question-{n}.wav") for n in (1, 2))
    result = recogniser.transcribe(english, "en")
    assert asr.normalise(result.text, "en") == ["what", "is", "three", "plus", "five"]
    assert len(result.words) == 5 and result.words[2].start > result.words[0].end - 0.01
    assert all(0 <= word.start <= word.end <= len(english) / 24_000 + 0.1 for word in result.words)
    assert recogniser.transcribe(english, "en") == result
    assert recogniser.transcribe(mandarin, "").language in recogniser.languages
    assert recogniser.transcribe(mandarin, "zh").language == "zh"


@REAL
@needs.extra("asr", "faster_whisper")
def test_real_weights_that_are_cut_are_one_clear_line(tmp_path):
    model = shutil.copytree(os.environ["SG2_WHISPER"], tmp_path / "cut")
    with (model / "model.bin").open("r+b") as file:
        file.truncate(1_000_000)
    fails(model, "cannot be loaded as a Whisper model, its files may be cut")
