"""Judges of decoded speech during training."""

import numpy as np
import pytest
import torch

from speechgpt2.asr.recogniser import Transcription
from speechgpt2.codec.validation import HeldOutSpeech
from speechgpt2.errors import MissingDependency
from speechgpt2.eval import validation
from tests import needs

CLIP = HeldOutSpeech(torch.zeros(0), "one two", "en")


class Parrot:
    """A recogniser that always says the same."""

    languages = frozenset({"en"})

    def transcribe(self, pcm, language):
        return Transcription("one three")


@needs.extra("eval", "pystoi", "pesq")
def test_measures_of_equal_audio_are_high():
    time = np.arange(48_000) / 24_000
    pcm = (np.sin(2 * np.pi * 200 * time) * (np.sin(2 * np.pi * 3 * time) > 0) * 0.3).astype(np.float32)
    values = validation.codec_judge()(pcm, pcm, CLIP)
    assert values["stoi"] > 0.99 and values["pesq"] > 4


@needs.extra("asr", "num2words")
def test_a_recogniser_counts_errors(monkeypatch):
    monkeypatch.setattr(validation.asr, "load", lambda name: Parrot())
    monkeypatch.setattr(validation, "_has_measures", lambda is_needed: False)
    judge, pcm = validation.codec_judge("parrot"), np.zeros(100, np.float32)
    assert judge(pcm, pcm, CLIP) == {"asr_errors": 0.5}
    assert np.isnan(judge(pcm, pcm, CLIP._replace(lang="zh"))["asr_errors"])
    assert np.isnan(judge(pcm, pcm, CLIP._replace(text=""))["asr_errors"])


def test_without_measures_and_recogniser_there_is_no_judge(monkeypatch, capsys):
    def missing(module, extra):
        raise MissingDependency(f"{module} is not installed")

    monkeypatch.setattr(validation, "require", missing)
    assert validation.codec_judge() is None
    assert "validation without STOI and PESQ: pystoi is not installed" in capsys.readouterr().err
    with pytest.raises(MissingDependency, match="pystoi is not installed"):
        validation.codec_judge(by="stoi")
