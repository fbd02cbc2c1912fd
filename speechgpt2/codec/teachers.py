"""Semantic teachers of a codec: what its first codebook must let a linear head predict.

    ctc            the text that is spoken, as bytes, wherever words and their times are known
    distillation   the hidden features of a frozen speech model: Whisper, HuBERT, WavLM

Phones are a teacher, too, and are part of every run (codec/train.py). A head reads the vectors of the first codebook,
some frames late, because the encoder is causal. A new teacher is a configuration and an entry in `TEACHERS`.
CTC: Graves et al., 2006. Features taught to a first codebook: Zhang et al., 2023 (https://arxiv.org/abs/2308.16692).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import soxr
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechgpt2.codec.crops import Crops
from speechgpt2.errors import UserError
from speechgpt2.extras import require
from speechgpt2.training import distributed
from speechgpt2.types import SAMPLE_RATE

BLANK = 0  # of CTC; byte b is label b + 1
TEACHER_RATE = 16_000  # Hz, of the speech models


@dataclass(frozen=True)
class CTCConfig:
    """The text of the crop by connectionist temporal classification. `delay` is in frames."""

    kind: Literal["ctc"] = "ctc"
    weight: float = 4.0
    delay: int = 3


@dataclass(frozen=True)
class DistillationConfig:
    """Cosine distance from the features of `layer` of a speech model.

    `model` is a folder or a Hugging Face id of `transformers`, or the folder of a faster-whisper model.
    """

    kind: Literal["distillation"] = "distillation"
    model: str = ""
    layer: int = -1
    weight: float = 5.0
    delay: int = 3

    def __post_init__(self) -> None:
        if not self.model:
            raise UserError("distillation needs `model`, such as openai/whisper-base")


TeacherConfig = CTCConfig | DistillationConfig


class Teacher(Protocol):
    """Compares what a head predicts with what it knows of a crop."""

    outputs: int

    def loss(self, predicted: Tensor, crops: Crops) -> Tensor:
        """Return the loss of `predicted [B, T − delay, outputs]`; row t has seen the frames up to t + delay."""
        ...


class CTCTeacher:
    """The negative log-likelihood of the text, for each byte. Crops of unknown text do not count."""

    outputs = 257

    def __init__(self, config: CTCConfig, device: torch.device):
        pass

    def loss(self, predicted: Tensor, crops: Crops) -> Tensor:
        """Return the loss, 0 if no text is known."""
        known = [row for row, text in enumerate(crops.texts) if text is not None]
        texts = [list(crops.texts[row].lower().encode()) for row in known]  # type: ignore[union-attr]
        count = torch.tensor(sum(map(len, texts)), device=predicted.device)
        error = self._error(predicted[known], texts) if count else predicted.sum() * 0.0
        return distributed.part_of_mean(error, count)

    def _error(self, predicted: Tensor, texts: list[list[int]]) -> Tensor:
        log_probs = predicted.float().log_softmax(-1).transpose(0, 1)  # [T, N, labels]
        targets = torch.tensor([byte + 1 for text in texts for byte in text], device=predicted.device)
        lengths = torch.tensor([len(text) for text in texts])
        frames = torch.full((len(texts),), len(log_probs))
        return F.ctc_loss(log_probs, targets, frames, lengths, BLANK, reduction="sum", zero_infinity=True)


class SpeechModel(Protocol):
    """A frozen model of speech, whose hidden features are taught. `width` is their size."""

    width: int

    def features(self, waves: Sequence[np.ndarray]) -> Tensor:
        """Return the features of waves [N] at 16 kHz, all of one length: `[B, S, width]`, some 50 a second."""
        ...


class DistillationTeacher:
    """The features of a frozen speech model, averaged to the codec's frames.

    Raises:
        UserError: If the model cannot be loaded, or its library is missing.
    """

    def __init__(self, config: DistillationConfig, device: torch.device):
        is_converted = (Path(config.model) / "model.bin").is_file()
        self.model: SpeechModel = (FasterWhisperModel if is_converted else TransformersModel)(config, device)
        self.device, self.outputs = device, self.model.width

    def loss(self, predicted: Tensor, crops: Crops) -> Tensor:
        """Return the mean of 1 − the cosine similarity."""
        wanted = self.features(crops.pcm, crops.phones.shape[1])[:, : predicted.shape[1]]
        return (1 - F.cosine_similarity(predicted.float(), wanted, dim=-1)).mean()

    @torch.no_grad()
    def features(self, pcm: Tensor, frames: int) -> Tensor:
        """Return the features of `pcm [B, N]`, `[B, frames, outputs]`."""
        waves = [soxr.resample(row, SAMPLE_RATE, TEACHER_RATE) for row in pcm.cpu().numpy()]
        hidden = self.model.features(waves).to(self.device)
        return F.adaptive_avg_pool1d(hidden.float().transpose(1, 2), frames).transpose(1, 2)


class FasterWhisperModel:
    """The encoder of a Whisper model that was converted for faster-whisper, on the CPU. It gives its last layer.

    Raises:
        UserError: If it cannot be loaded, another layer is wanted, or `faster_whisper` is missing.
    """

    def __init__(self, config: DistillationConfig, device: torch.device):
        if config.layer != -1:
            raise UserError(f"teacher {config.model}: a faster-whisper model gives only its last layer, -1")
        extraction = require("faster_whisper.feature_extractor", "eval")
        self.library = require("ctranslate2", "eval")
        try:
            self.network = self.library.models.Whisper(config.model, compute_type="float32", intra_threads=1)
        except RuntimeError as error:
            raise UserError(f"teacher {config.model}: {str(error).splitlines()[0]}") from None
        self.extractor = extraction.FeatureExtractor(feature_size=self.network.n_mels)
        self.width = self.features([np.zeros(TEACHER_RATE // 10, np.float32)]).shape[2]

    def features(self, waves: Sequence[np.ndarray]) -> Tensor:
        """See `SpeechModel`."""
        spectra = np.stack([self.extractor(wave) for wave in waves])
        spectra = np.ascontiguousarray(spectra[:, :, : spectra.shape[2] // 2 * 2], np.float32)
        return torch.tensor(np.array(self.network.encode(self.library.StorageView.from_array(spectra), to_cpu=True)))


class TransformersModel:
    """Whisper, HuBERT or WavLM by `transformers`.

    Raises:
        UserError: If it cannot be loaded, or `transformers` is missing.
    """

    def __init__(self, config: DistillationConfig, device: torch.device):
        library = require("transformers", "teachers")
        try:
            model = library.AutoModel.from_pretrained(config.model)
            self.extractor = library.AutoFeatureExtractor.from_pretrained(config.model)
        except (OSError, ValueError) as error:
            raise UserError(f"teacher {config.model}: {(str(error).splitlines() or ['cannot be loaded'])[0]}") from None
        self.is_whisper = model.config.model_type == "whisper"
        network = model.encoder if self.is_whisper else model
        self.network = network.to(device).eval().requires_grad_(False)
        self.layer, self.device, self.width = config.layer, device, model.config.hidden_size

    def features(self, waves: Sequence[np.ndarray]) -> Tensor:
        """See `SpeechModel`."""
        return self._whisper(waves) if self.is_whisper else self._waveform(waves)

    def _waveform(self, waves: Sequence[np.ndarray]) -> Tensor:
        given = self.extractor(waves, sampling_rate=TEACHER_RATE, return_tensors="pt").input_values.to(self.device)
        return self.network(given, output_hidden_states=True).hidden_states[self.layer]

    def _whisper(self, waves: Sequence[np.ndarray]) -> Tensor:
        """Whisper reads 30 s; a shorter input needs the first of its positions only."""
        options: dict[str, Any] = {"padding": "max_length", "max_length": len(waves[0]), "return_tensors": "pt"}
        given = self.extractor(waves, sampling_rate=TEACHER_RATE, **options).input_features.to(self.device)
        positions = given.shape[-1] // 2
        network, table = self.network, self.network.embed_positions
        before = network.config.max_source_positions
        network.embed_positions = nn.Embedding.from_pretrained(table.weight[:positions])
        network.config.max_source_positions = positions
        try:
            return network(given[..., : 2 * positions], output_hidden_states=True).hidden_states[self.layer]
        finally:
            network.embed_positions, network.config.max_source_positions = table, before


TEACHERS: dict[type, Callable[[Any, torch.device], Teacher]] = {
    CTCConfig: CTCTeacher,
    DistillationConfig: DistillationTeacher,
}


class Teachers(nn.Module):
    """The heads of several teachers on the first codebook's vectors. The teachers themselves are in no checkpoint.

    Raises:
        UserError: If a teacher cannot be loaded, or two have the same name.
    """

    def __init__(self, configs: Sequence[TeacherConfig], width: int, device: torch.device):
        super().__init__()
        names = [config.kind for config in configs]
        if len(set(names)) < len(names):
            raise UserError("teachers: give each kind once")
        self.configs, self.teachers = configs, [TEACHERS[type(config)](config, device) for config in configs]
        self.heads = nn.ModuleList(
            nn.Conv1d(width, teacher.outputs, config.delay + 1) for config, teacher in zip(configs, self.teachers)
        )

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each term of the loss."""
        return {config.kind: config.weight for config in self.configs}

    def forward(self, vectors: Tensor, crops: Crops) -> dict[str, Tensor]:
        """Return the terms of the loss for `vectors [B, T, D]`."""
        return {
            config.kind: teacher.loss(head(vectors.transpose(1, 2)).transpose(1, 2), crops)
            for config, teacher, head in zip(self.configs, self.teachers, self.heads)
        }
