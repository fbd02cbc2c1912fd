"""What others' models do better: recognition, opinion scores, source separation, diarisation. None is included.

    - {kind: recognise, engine: whisper, model: large-v3}       # after `segment`, before `transcript`
    - {kind: opinion, engine: dnsmos, model: sig_bak_ovr.onnx}
    - {kind: separate, model: htdemucs}                         # right after `decode`
    - {kind: diarise, model: pyannote/speaker-diarization-3.1}  # in the place of `segment` and `turns`

A model is loaded when the first clip arrives, in each worker; a missing package is an error that says what to install
and where weights come from.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from speechgpt2.audio import resample
from speechgpt2.data.clean.cutting import part
from speechgpt2.data.pipeline.sound import Sound
from speechgpt2.data.pipeline.stage import Rejected, Stage
from speechgpt2.data.record import Clip, Label, Language, Speaker
from speechgpt2.errors import UserError
from speechgpt2.types import SAMPLE_RATE

HEARD = 16_000  # Hz that all of them take


def _needed(module: str, install: str, weights: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(f"this step needs {module}: pip install {install}; {weights}") from None


def _heard(sound: Sound) -> np.ndarray:
    return resample(sound.pcm, SAMPLE_RATE, HEARD)


Hear = Callable[[np.ndarray, str], tuple[str, str]]  # pcm at 16 kHz, language or "" -> text, language


def whisper(model: str) -> Hear:
    module = _needed("faster_whisper", "faster-whisper", f"weights of '{model}' are fetched from Hugging Face")
    loaded = module.WhisperModel(model)

    def hear(pcm: np.ndarray, language: str) -> tuple[str, str]:
        segments, info = loaded.transcribe(pcm, language=language or None)
        return "".join(segment.text for segment in segments).strip(), info.language

    return hear


def funasr(model: str) -> Hear:
    """SenseVoice and Paraformer; what SenseVoice tags, <|zh|> and the like, is not text."""
    module = _needed("funasr", "funasr", f"weights of '{model}' are fetched from ModelScope, e.g. iic/SenseVoiceSmall")
    loaded = module.AutoModel(model=model, disable_update=True)

    def hear(pcm: np.ndarray, language: str) -> tuple[str, str]:
        import re

        text = loaded.generate(input=pcm, language=language or "auto")[0]["text"]
        tags = re.findall(r"<\|(\w+)\|>", text)
        return re.sub(r"<\|[^|]*\|>", "", text).strip(), tags[0] if tags else language

    return hear


@dataclass(frozen=True)
class RecogniseConfig:
    model: str
    engine: Literal["whisper", "sensevoice", "funasr"] = "whisper"
    kind: Literal["recognise"] = "recognise"


class Recognise(Stage[RecogniseConfig]):
    """Adds a hypothesis to the clip's text, and the language where none was known."""

    version = 1

    @property
    def model(self) -> str:
        return f"{self.config.engine}:{self.config.model}"

    @cached_property
    def _hear(self) -> Hear:
        return whisper(self.config.model) if self.config.engine == "whisper" else funasr(self.config.model)

    def __call__(self, clip: Clip, sound: Sound) -> Clip:
        text, language = self._hear(_heard(sound), clip.lang.code)
        labels = {**clip.labels_from, f"text.hypotheses[{len(clip.text.hypotheses)}]": Label(self.model)}
        words = replace(clip.text, hypotheses=(*clip.text.hypotheses, text))
        lang = clip.lang if clip.lang.code else Language(language)
        return replace(clip, text=words, lang=lang, labels_from=labels)


Judge = Callable[[np.ndarray], dict[str, float]]  # pcm at 16 kHz -> scores by name


def dnsmos(model: str) -> Judge:
    """DNSMOS P.835 (Reddy et al. 2022): the mean over windows of 9.01 s, a shorter clip repeated."""
    module = _needed(
        "onnxruntime", "onnxruntime", "weights: sig_bak_ovr.onnx of microsoft/DNS-Challenge, DNSMOS folder"
    )
    session = module.InferenceSession(model, providers=["CPUExecutionProvider"])
    name, size = session.get_inputs()[0].name, round(9.01 * HEARD)
    # What the authors' script corrects the network's raw signal, background and overall scores with.
    curves = (
        (-0.08397278, 1.22083953, 0.0052439),
        (-0.13166888, 1.60915514, -0.39604546),
        (-0.06766283, 1.11546468, 0.04602535),
    )

    def judge(pcm: np.ndarray) -> dict[str, float]:
        whole = np.resize(pcm, max(size, len(pcm)))
        starts = range(0, len(whole) - size + 1, HEARD)
        raw = [session.run(None, {name: whole[None, s : s + size].astype(np.float32)})[0][0] for s in starts]
        # Each window is corrected before the mean is taken, as there.
        scores = [[np.polyval(curve, value) for curve, value in zip(curves, window)] for window in raw]
        sig, bak, ovrl = (float(score) for score in np.mean(scores, 0))
        return {"dnsmos": round(ovrl, 3), "dnsmos_sig": round(sig, 3), "dnsmos_bak": round(bak, 3)}

    return judge


def utmos(model: str) -> Judge:
    """UTMOS22 (Saeki et al. 2022) as torch.hub has it."""
    torch = _needed("torch", "torch", "UTMOS is fetched by torch.hub from tarepan/SpeechMOS")
    loaded = torch.hub.load(model, "utmos22_strong", trust_repo=True)

    def judge(pcm: np.ndarray) -> dict[str, float]:
        with torch.inference_mode():
            return {"utmos": round(float(loaded(torch.from_numpy(pcm)[None], HEARD)), 3)}

    return judge


@dataclass(frozen=True)
class OpinionConfig:
    """model: for dnsmos, the path of its ONNX file; for utmos, the repository that torch.hub fetches."""

    model: str
    engine: Literal["dnsmos", "utmos"] = "dnsmos"
    kind: Literal["opinion"] = "opinion"


class Opinion(Stage[OpinionConfig]):
    """Scores in `quality.mos`."""

    version = 2

    @property
    def model(self) -> str:
        return f"{self.config.engine}:{self.config.model}"

    @cached_property
    def _judge(self) -> Judge:
        return {"dnsmos": dnsmos, "utmos": utmos}[self.config.engine](self.config.model)

    def __call__(self, clip: Clip, sound: Sound) -> Clip:
        quality = replace(clip.quality, mos={**clip.quality.mos, **self._judge(_heard(sound))})
        return replace(clip, quality=quality)


@dataclass(frozen=True)
class SeparateConfig:
    model: str = "htdemucs"
    kind: Literal["separate"] = "separate"


class Separate(Stage[SeparateConfig]):
    """A recording's voices without what else sounds, by Demucs (Rouard et al. 2023), minute by minute."""

    version = 1

    @property
    def model(self) -> str:
        return f"demucs:{self.config.model}"

    @cached_property
    def _separator(self) -> Any:
        module = _needed("demucs.api", "demucs", f"weights of '{self.config.model}' are fetched by demucs itself")
        return module.Separator(model=self.config.model)

    def __call__(self, clip: Clip, sound: Sound) -> Clip:
        pcm_hash, samples = sound.workspace.add(self._voices(clip, sound))
        return replace(clip, audio=replace(clip.audio, start=0.0, duration=samples / SAMPLE_RATE, pcm_hash=pcm_hash))

    def _voices(self, clip: Clip, sound: Sound) -> Iterator[np.ndarray]:
        import torch

        start = 0.0
        while start < clip.audio.duration:
            pcm = sound.span(clip.audio.start + start, min(60.0, clip.audio.duration - start))
            both = torch.from_numpy(pcm)[None].expand(2, -1)
            _, parts = self._separator.separate_tensor(both, SAMPLE_RATE)
            voices = parts["vocals"].mean(0).numpy()
            rate = getattr(self._separator, "samplerate", SAMPLE_RATE)
            yield np.resize(resample(voices, rate, SAMPLE_RATE), len(pcm))
            start += 60.0


@dataclass(frozen=True)
class VoicesConfig:
    model: str = "pyannote/speaker-diarization-3.1"
    kind: Literal["diarise"] = "diarise"


class Voices(Stage[VoicesConfig]):
    """One clip for each turn that pyannote hears, with its speaker."""

    version = 2

    @property
    def model(self) -> str:
        return self.config.model

    @cached_property
    def _pipeline(self) -> Any:
        weights = f"accept the terms of {self.config.model} on Hugging Face and set HF_TOKEN"
        module = _needed("pyannote.audio", "pyannote.audio", weights)
        pipeline = module.Pipeline.from_pretrained(self.config.model)
        if pipeline is None:
            raise UserError(f"{self.config.model} cannot be loaded: {weights}")
        return pipeline

    def __call__(self, clip: Clip, sound: Sound) -> list[Clip]:
        import torch

        heard = self._pipeline({"waveform": torch.from_numpy(_heard(sound))[None], "sample_rate": HEARD})
        turns = [(turn.start, turn.end, name) for turn, _, name in heard.itertracks(yield_label=True)]
        if not turns:
            raise Rejected("no-speech", "nobody speaks in it")
        return [self._clip(clip, *turn) for turn in turns]

    def _clip(self, clip: Clip, start: float, end: float, name: str) -> Clip:
        labels = {**clip.labels_from, "speakers.id": Label(self.model)}
        speakers = (Speaker(f"{clip.id}/{name}"),)
        id = f"{clip.id}-{round(start * 1000):08d}-{name}"
        made = replace(part(clip, start, end), id=id, parent_id=clip.id)
        return replace(made, speakers=speakers, labels_from=labels)
