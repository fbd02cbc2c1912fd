"""Stages by external models: recognition, opinion scores, source separation, diarisation. No model is included.

    - {kind: recognise, model: models/whisper-base}             # faster-whisper; after `segment`, before `transcript`
    - {kind: opinion}                                           # DNSMOS, by the weights in the package speechmos
    - {kind: separate, model: htdemucs}                         # right after `decode`
    - {kind: diarise, model: pyannote/speaker-diarization-3.1}  # instead of `segment` and `speaker_changes`

A model is loaded when the first clip arrives, in each worker; a missing package is an error that says what to install
and where weights come from.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np

from speechgpt2 import asr
from speechgpt2.audio import resample
from speechgpt2.data.clean.cut_clip import cut_clip
from speechgpt2.data.pipeline.clip_audio import ClipAudio
from speechgpt2.data.pipeline.stage import C, Rejected, Stage
from speechgpt2.data.record import Clip, Label, Language, Speaker
from speechgpt2.dnsmos import DnsMos
from speechgpt2.errors import UserError
from speechgpt2.types import SAMPLE_RATE

MODEL_RATE = 16_000  # Hz: the input of these models


class PluginStage(Stage[C]):
    """A stage by an external model. `model_name` identifies the model; `{config.…}` stands for settings in it."""

    model_name: ClassVar[str]

    @property
    def model(self) -> str:
        """The model that the stage uses."""
        return self.model_name.format(config=self.config)


def _require(module: str, install: str, weights: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(f"this step needs {module}: pip install {install}; {weights}") from None


def _at_model_rate(clip_audio: ClipAudio) -> np.ndarray:
    return resample(clip_audio.pcm, SAMPLE_RATE, MODEL_RATE)


@dataclass(frozen=True)
class RecogniseConfig:
    """An ASR model.

    Attributes:
        model: A folder, a Hugging Face id, or a size of Whisper, as `asr.load` takes it.
        engine: A key of `asr.registry.ENGINES`.
        threads: CPU threads of each worker.
    """

    model: str
    engine: Literal["whisper", "sensevoice", "funasr", "pocketsphinx", "speechgpt2"] = "whisper"
    threads: int = 1
    kind: Literal["recognise"] = "recognise"


class Recognise(PluginStage[RecogniseConfig]):
    """Adds a hypothesis to the clip's text, and the language if it is unknown."""

    version = 2
    model_name = "{config.engine}:{config.model}"

    @cached_property
    def _recogniser(self) -> asr.Recogniser:
        return asr.load(self.config.model, self.config.engine, self.config.threads)

    def __call__(self, clip: Clip, clip_audio: ClipAudio) -> Clip:
        """Return the clip with new fields."""
        code = clip.lang.code.split("-")[0]
        # If the model does not know the language, it detects one.
        transcript = self._recogniser.transcribe(clip_audio.pcm, code if code in self._recogniser.languages else "")
        labels = {**clip.labels_from, f"text.hypotheses[{len(clip.text.hypotheses)}]": Label(self.model)}
        text = replace(clip.text, hypotheses=(*clip.text.hypotheses, transcript.text))
        lang = clip.lang if clip.lang.code else Language(transcript.language)
        return replace(clip, text=text, lang=lang, labels_from=labels)


Score = Callable[[np.ndarray], dict[str, float]]  # pcm [N] at 24 kHz -> scores by name


def dnsmos(model: str) -> Score:
    """DNSMOS P.835 (`speechgpt2.dnsmos`)."""
    scorer = DnsMos(model)

    def score(pcm: np.ndarray) -> dict[str, float]:
        scores = scorer.score(pcm)
        by_name = {"dnsmos": scores.overall, "dnsmos_sig": scores.signal, "dnsmos_bak": scores.background}
        return {name: round(value, 3) for name, value in by_name.items()}

    return score


def utmos(model: str) -> Score:
    """UTMOS22 (Saeki et al. 2022) as torch.hub has it."""
    torch = _require("torch", "torch", "UTMOS is fetched by torch.hub from tarepan/SpeechMOS")
    loaded = torch.hub.load(model or "tarepan/SpeechMOS", "utmos22_strong", trust_repo=True)

    def score(pcm: np.ndarray) -> dict[str, float]:
        with torch.inference_mode():
            wave = torch.from_numpy(resample(pcm, SAMPLE_RATE, MODEL_RATE))
            return {"utmos": round(float(loaded(wave[None], MODEL_RATE)), 3)}

    return score


@dataclass(frozen=True)
class OpinionScoreConfig:
    """A model of opinion scores.

    Attributes:
        model: For dnsmos the path of its ONNX file, "" for that of the package speechmos; for utmos the repository that
            torch.hub fetches.
    """

    model: str = ""
    engine: Literal["dnsmos", "utmos"] = "dnsmos"
    kind: Literal["opinion"] = "opinion"


class OpinionScore(PluginStage[OpinionScoreConfig]):
    """Scores in `quality.mos`."""

    version = 3
    model_name = "{config.engine}:{config.model}"

    @cached_property
    def _score(self) -> Score:
        return {"dnsmos": dnsmos, "utmos": utmos}[self.config.engine](self.config.model)

    def __call__(self, clip: Clip, clip_audio: ClipAudio) -> Clip:
        """Return the clip with new fields."""
        quality = replace(clip.quality, mos={**clip.quality.mos, **self._score(clip_audio.pcm)})
        return replace(clip, quality=quality)


@dataclass(frozen=True)
class SeparateConfig:
    """Options of `Separate`: the name of a Demucs model."""

    model: str = "htdemucs"
    kind: Literal["separate"] = "separate"


class Separate(PluginStage[SeparateConfig]):
    """Extracts the voices of a recording, by Demucs (Rouard et al. 2023), minute by minute."""

    version = 1
    model_name = "demucs:{config.model}"

    @cached_property
    def _separator(self) -> Any:
        module = _require("demucs.api", "demucs", f"weights of '{self.config.model}' are fetched by demucs itself")
        return module.Separator(model=self.config.model)

    def __call__(self, clip: Clip, clip_audio: ClipAudio) -> Clip:
        """Return the clip with new fields."""
        pcm_hash, samples = clip_audio.workspace.add_recording(self._voices(clip, clip_audio))
        return replace(clip, audio=replace(clip.audio, start=0.0, duration=samples / SAMPLE_RATE, pcm_hash=pcm_hash))

    def _voices(self, clip: Clip, clip_audio: ClipAudio) -> Iterator[np.ndarray]:
        import torch

        start = 0.0
        while start < clip.audio.duration:
            pcm = clip_audio.span(clip.audio.start + start, min(60.0, clip.audio.duration - start))
            stereo = torch.from_numpy(pcm)[None].expand(2, -1)
            _, sources = self._separator.separate_tensor(stereo, SAMPLE_RATE)
            voices = sources["vocals"].mean(0).numpy()
            rate = getattr(self._separator, "samplerate", SAMPLE_RATE)
            yield np.resize(resample(voices, rate, SAMPLE_RATE), len(pcm))
            start += 60.0


@dataclass(frozen=True)
class DiariseConfig:
    """Options of `Diarise`: the name of a pyannote pipeline."""

    model: str = "pyannote/speaker-diarization-3.1"
    kind: Literal["diarise"] = "diarise"


class Diarise(PluginStage[DiariseConfig]):
    """Cuts a clip for each turn that pyannote finds, with its speaker."""

    version = 2
    model_name = "{config.model}"

    @cached_property
    def _pipeline(self) -> Any:
        weights = f"accept the terms of {self.config.model} on Hugging Face and set HF_TOKEN"
        module = _require("pyannote.audio", "pyannote.audio", weights)
        pipeline = module.Pipeline.from_pretrained(self.config.model)
        if pipeline is None:
            raise UserError(f"{self.config.model} cannot be loaded: {weights}")
        return pipeline

    def __call__(self, clip: Clip, clip_audio: ClipAudio) -> list[Clip]:
        """Return a clip for each turn."""
        import torch

        speakers = self._pipeline(
            {"waveform": torch.from_numpy(_at_model_rate(clip_audio))[None], "sample_rate": MODEL_RATE}
        )
        turns = [(turn.start, turn.end, name) for turn, _, name in speakers.itertracks(yield_label=True)]
        if not turns:
            raise Rejected("no-speech", "contains no speech")
        return [self._clip(clip, *turn) for turn in turns]

    def _clip(self, clip: Clip, start: float, end: float, name: str) -> Clip:
        labels = {**clip.labels_from, "speakers.id": Label(self.model)}
        speakers = (Speaker(f"{clip.id}/{name}"),)
        id = f"{clip.id}-{round(start * 1000):08d}-{name}"
        turn = replace(cut_clip(clip, start, end), id=id, parent_id=clip.id)
        return replace(turn, speakers=speakers, labels_from=labels)
