"""A CTC model in a real ONNX file, whose letters are tones: found where they were put."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from speechgpt2.data.annotate.align import Align, AlignConfig
from speechgpt2.data.pipeline.clip_audio import ClipAudio, Workspace
from speechgpt2.data.record import AudioInfo, Clip, ClipText, Language
from speechgpt2.errors import UserError
from speechgpt2.tts.alignment.ctc import CtcModel, tokenize
from speechgpt2.tts.alignment.viterbi import Unalignable
from speechgpt2.types import SAMPLE_RATE
from tests import needs
from tests.onnx_writer import tone_model

VOCABULARY = {"<pad>": 0, "|": 1, "A": 2, "B": 3, "C": 4, "学": 5}
TONES = {number: 400.0 * number for number in range(1, 6)}


@pytest.fixture
def folder(tmp_path):
    needs.module("onnxruntime", "server")
    made = tmp_path / "model"
    made.mkdir()
    (made / "model.onnx").write_bytes(tone_model(TONES, len(VOCABULARY), blank=0))
    (made / "vocab.json").write_text(json.dumps(VOCABULARY), encoding="utf-8")
    (made / "config.json").write_text(json.dumps({"conv_stride": [5, 2, 2, 2, 2, 2, 2]}))
    (made / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True}))
    return made


def tune(*notes):
    """(token or None, seconds) after one another, at 24 kHz."""
    parts = []
    for token, seconds in notes:
        time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
        parts.append(0.2 * np.sin(2 * np.pi * TONES[token] * time) if token else np.zeros(len(time)))
    return np.concatenate(parts).astype(np.float32)


def test_ctc_word_times_match_the_audio(folder, tmp_path):
    pcm = tune((None, 0.4), (2, 0.3), (3, 0.3), (1, 0.2), (4, 0.4), (None, 0.3))
    workspace = Workspace(tmp_path, tmp_path)
    name, samples = workspace.add_recording([pcm])
    info = AudioInfo("", SAMPLE_RATE, 1, 0.0, samples / SAMPLE_RATE, "FLAC", name)
    clip = Clip("x", audio=info, text=ClipText(raw="Ab, c."), lang=Language("en"))
    stage = pickle.loads(pickle.dumps(Align(AlignConfig(model=str(folder)))))  # as a worker gets it
    found = stage(clip, ClipAudio(clip, workspace))
    assert [word.text for word in found.align.words] == ["Ab", "c"]
    times = [time for word in found.align.words for time in (word.start, word.end)]
    assert times == pytest.approx([0.4, 1.0, 1.2, 1.6], abs=0.025)
    assert found.quality.extra["alignment"] > 0.9
    assert found.labels_from["align"].tool == stage.model and stage.model.startswith("ctc-")


def test_click_is_no_speech(folder):
    with pytest.raises(Unalignable, match="shorter"):
        CtcModel(str(folder))(tune((2, 0.01)), "a", "en")


def test_model_is_known_by_its_content(folder):
    before = CtcModel(str(folder)).id
    assert CtcModel(str(folder)).id == before
    (folder / "model.onnx").write_bytes(tone_model({2: 440.0}, len(VOCABULARY), blank=0))
    assert CtcModel(str(folder)).id != before
    (folder / "model.onnx").unlink()
    with pytest.raises(UserError, match=r"has no model\.onnx"):
        _ = CtcModel(str(folder)).id


@pytest.mark.parametrize("damage", ["model.onnx", "vocab.json", "config.json", "preprocessor_config.json"])
def test_damaged_folder_is_a_clear_error(folder, damage):
    (folder / damage).write_bytes(b"{")
    with pytest.raises(UserError, match=damage):
        CtcModel(str(folder))(tune((2, 0.5)), "a", "en")


def test_spelling():
    assert tokenize("Ab, c!", VOCABULARY)[0] == [2, 3, 1, 4]
    tokens, words = tokenize("学学 a", VOCABULARY)
    assert tokens == [5, 1, 5, 1, 2] and [word.text for word in words] == ["学", "学", "a"]
    assert tokenize("… —", VOCABULARY) == ([], ())
    without = {"<pad>": 0, "a": 1, "'": 2}
    assert tokenize("a’a A", without)[0] == [1, 2, 1, 1]
    for text in ("a 5", "ax", "校"):
        with pytest.raises(Unalignable, match="no token"):
            tokenize(text, VOCABULARY)
