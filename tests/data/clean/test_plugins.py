"""Stages by models of others: Whisper and DNSMOS for real, the rest against fakes; and what is said without them."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from speechgpt2 import audio
from speechgpt2.asr import Transcription, normalise
from speechgpt2.data import steps
from speechgpt2.data.clean import plugins
from speechgpt2.data.pipeline.clip_audio import ClipAudio, Workspace
from speechgpt2.data.record import AudioInfo, Clip, Language
from speechgpt2.data.steps import PipelineConfig
from speechgpt2.dnsmos import packaged
from speechgpt2.errors import UserError
from speechgpt2.types import SAMPLE_RATE
from tests import needs


@pytest.fixture
def recording(tmp_path) -> tuple[Clip, ClipAudio]:
    workspace = Workspace(tmp_path, tmp_path)
    name, samples = workspace.add_recording([np.sin(np.arange(3 * SAMPLE_RATE) * 0.05).astype(np.float32) * 0.3])
    clip = Clip("a", audio=AudioInfo("", SAMPLE_RATE, 1, 0.0, samples / SAMPLE_RATE, "FLAC", name))
    return clip, ClipAudio(clip, workspace)


class FakeRecogniser:
    name, languages = "fake", frozenset({"en", "zh"})

    def transcribe(self, pcm, language):
        assert pcm.dtype == np.float32 and len(pcm) == 3 * SAMPLE_RATE
        return Transcription("hello world", language or "en")


def test_recogniser_adds_a_hypothesis(recording, monkeypatch):
    asked = []
    monkeypatch.setattr(plugins.asr, "load", lambda *of: asked.append(of) or FakeRecogniser())
    stage = plugins.Recognise(plugins.RecogniseConfig("tiny", threads=2))
    clip = stage(*recording)
    assert clip.text.hypotheses == ("hello world",) and clip.lang == Language("en")
    assert clip.labels_from["text.hypotheses[0]"].tool == "whisper:tiny" and "whisper:tiny" in stage.identity
    assert stage(clip, recording[1]).text.hypotheses == ("hello world", "hello world")
    french = stage(replace(recording[0], lang=Language("fr")), recording[1])  # detected, and not overwritten
    assert french.text.hypotheses == ("hello world",) and french.lang == Language("fr")
    assert asked == [("tiny", "whisper", 2)]


def test_sensevoice(recording, monkeypatch):
    class AutoModel:
        def __init__(self, model, disable_update):
            assert model == "iic/SenseVoiceSmall"

        def generate(self, input, language):
            assert len(input) == 48_000
            return [{"text": "<|zh|><|NEUTRAL|><|Speech|>你好"}]

    monkeypatch.setitem(sys.modules, "funasr", SimpleNamespace(AutoModel=AutoModel))
    clip = plugins.Recognise(plugins.RecogniseConfig("iic/SenseVoiceSmall", "sensevoice"))(*recording)
    assert clip.text.hypotheses == ("你好",) and clip.lang.code == "zh"


@pytest.fixture
def question(tmp_path) -> tuple[Clip, ClipAudio]:
    """A shipped recording: "What is three plus five?"."""
    workspace = Workspace(tmp_path, tmp_path)
    name, samples = workspace.add_recording([audio.load(Path(__file__).parents[3] / "examples" / "question-1.wav")])
    clip = Clip("q", audio=AudioInfo("", SAMPLE_RATE, 1, 0.0, samples / SAMPLE_RATE, "FLAC", name))
    return clip, ClipAudio(clip, workspace)


@needs.model("SG2_WHISPER")
@needs.extra("asr", "faster_whisper", "num2words")
def test_whisper_transcribes_by_the_path_in_a_preset(question, tmp_path):
    preset = tmp_path / "own.yaml"
    preset.write_text(f"steps: [{{kind: decode}}, {{kind: recognise, model: {os.environ['SG2_WHISPER']}}}]")
    stage = steps.load(str(preset)).build()[1]
    clip = stage(*question)
    assert normalise(clip.text.hypotheses[0], "en") == ["what", "is", "three", "plus", "five"]
    assert clip.lang.code == "en" and stage(*question) == clip


@needs.extra("eval", "speechmos", "onnxruntime")
def test_dnsmos_scores_speech_above_noise(question, recording, tmp_path):
    preset = tmp_path / "own.yaml"
    preset.write_text("steps: [{kind: decode}, {kind: opinion}]")
    stage = steps.load(str(preset)).build()[1]
    mos = stage(*question).quality.mos
    assert set(mos) == {"dnsmos", "dnsmos_sig", "dnsmos_bak"} and 2.5 < mos["dnsmos"] < 5
    assert stage(*recording).quality.mos["dnsmos"] < mos["dnsmos"]
    by_path = plugins.OpinionScore(plugins.OpinionScoreConfig(str(packaged())))
    assert by_path(*question).quality.mos == mos and by_path.identity != stage.identity


def test_utmos(recording, monkeypatch):
    monkeypatch.setattr(torch.hub, "load", lambda repo, name, trust_repo: lambda wave, rate: torch.tensor([4.2]))
    assert plugins.OpinionScore(plugins.OpinionScoreConfig("tarepan/SpeechMOS", "utmos"))(*recording).quality.mos == {
        "utmos": 4.2
    }


def test_separation(recording, monkeypatch):
    class Separator:
        samplerate = 44_100

        def __init__(self, model):
            assert model == "htdemucs"

        def separate_tensor(self, wave, rate):
            import torch

            assert tuple(wave.shape) == (2, 72_000) and rate == SAMPLE_RATE
            return wave, {"vocals": torch.zeros(2, 3 * 44_100) + 0.25}

    monkeypatch.setitem(sys.modules, "demucs", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "demucs.api", SimpleNamespace(Separator=Separator))
    clip = plugins.Separate(plugins.SeparateConfig())(*recording)
    assert clip.audio.duration == 3.0 and clip.audio.pcm_hash != recording[0].audio.pcm_hash
    assert np.allclose(ClipAudio(clip, recording[1].workspace).pcm[1000:-1000], 0.25, atol=1e-3)


def test_pyannote(recording, monkeypatch):
    class Annotation:
        def itertracks(self, yield_label):
            yield SimpleNamespace(start=0.5, end=1.0), "_", "SPEAKER_00"
            yield SimpleNamespace(start=1.5, end=2.5), "_", "SPEAKER_01"

    class Pipeline:
        @classmethod
        def from_pretrained(cls, model):
            return lambda clip_audio: Annotation()

    monkeypatch.setitem(sys.modules, "pyannote", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "pyannote.audio", SimpleNamespace(Pipeline=Pipeline))
    clips = plugins.Diarise(plugins.DiariseConfig())(*recording)
    assert [(c.audio.start, c.audio.duration, c.speakers[0].id) for c in clips] == [
        (0.5, 0.5, "a/SPEAKER_00"), (1.5, 1.0, "a/SPEAKER_01"),
    ]  # fmt: skip
    monkeypatch.setattr(Pipeline, "from_pretrained", lambda model: None)
    with pytest.raises(UserError, match="HF_TOKEN"):
        plugins.Diarise(plugins.DiariseConfig())(*recording)


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        (plugins.Recognise(plugins.RecogniseConfig("tiny")), "pip install 'speechgpt2[asr]'"),
        (plugins.Recognise(plugins.RecogniseConfig("m", "funasr")), "pip install funasr"),
        (plugins.Separate(plugins.SeparateConfig()), "pip install demucs"),
        (plugins.Diarise(plugins.DiariseConfig()), "pip install pyannote.audio; accept the terms"),
    ],
)
def test_missing_package_error_says_what_to_install(recording, stage, words, monkeypatch):
    for name in ("faster_whisper", "funasr", "demucs.api", "pyannote.audio"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError) as error:
        stage(*recording)
    assert words in str(error.value)


def test_presets_name_plug_ins_like_other_steps():
    from speechgpt2 import config

    steps = [{"kind": "decode"}, {"kind": "separate"}, {"kind": "diarise"}, {"kind": "recognise", "model": "tiny"}]
    built = config.from_dict(PipelineConfig, {"steps": steps}).build()
    assert [step.name for step in built] == ["decode", "separate", "diarise", "recognise"]
