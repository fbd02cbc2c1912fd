"""Training of the codec: one loop, whose phases are switched on by step.

    0 … quantize_from       continuous autoencoder
    quantize_from …         residual quantizer: k-means, then moving averages; straight-through gradients
    freeze_from …           encoder and codebooks fixed, so that codes do not change; the decoder continues
    adversarial_from …      discriminators join (decoder only)

The encoder's input has room acoustics and noise, the decoder's target has none. Besides the waveform there is
supervision of pitch; of the phone, predicted from the vectors of the first codebook some frames later (the encoder is
causal), which ties codes to content; and of the listener's response to the copy (codec/listener.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechgpt2.codec import config as presets
from speechgpt2.codec.config import CodecConfig
from speechgpt2.codec.crops import Crops, CropSource
from speechgpt2.codec.discriminators import DiscriminatorConfig, Discriminators
from speechgpt2.codec.growth import grow
from speechgpt2.codec.harmonic import HarmonicHead
from speechgpt2.codec.listener import Listener
from speechgpt2.codec.losses import MultiScaleMel, pitch_losses
from speechgpt2.codec.model import Codec
from speechgpt2.codec.teachers import TeacherConfig, Teachers
from speechgpt2.codec.validation import HeldOutSpeech, Judge, held_out_values
from speechgpt2.errors import UserError
from speechgpt2.nn.precision import has_fast_bf16
from speechgpt2.training import distributed, run
from speechgpt2.training.labels import cross_entropy
from speechgpt2.training.prefetch import StepLoader
from speechgpt2.training.run import (
    RunFolder,
    WeightAverage,
    descend,
    learning_rate,
    seed_step,
    shared_generator,
    step_random,
)
from speechgpt2.training.validation import ValidationConfig
from speechgpt2.types import FRAME_SIZE, SAMPLE_RATE

KMEANS_BATCHES = 32  # batches for the k-means that initialises the codebooks
HEAD_STEP = FRAME_SIZE // 4  # samples that the waveform head makes at once


@dataclass(frozen=True)
class StepCrops:
    """Makes the crops of a step, and returns the generator that further random choices of the step come from."""

    source: CropSource
    seed: int
    batch: int
    frames: int
    rank: int

    def __call__(self, step: int) -> tuple[Crops, np.random.Generator]:
        """Return the crops of a step."""
        random = step_random(self.seed, step, self.rank)
        return self.source.crops(random, self.batch, self.frames), random


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms of the codec's loss."""

    mel: float = 15.0
    f0: float = 20.0
    voicing: float = 4.0
    commitment: float = 5.0
    phone: float = 3.0
    listener: float = 1.0
    understood: float = 3.0
    adversarial: float = 1.0
    features: float = 2.0


@dataclass(frozen=True)
class CodecTrainConfig:
    """Configuration of a run. `codec` names a preset. Crops have `frames` frames (25 per second)."""

    codec: str = "mini"
    init: str | None = None  # a codec folder to continue from
    grow_to: str | None = None  # a deeper preset that `init` grows to, see `codec.growth`
    delay: int | None = None  # samples by which audio trails its codes, instead of the codec's
    steps: int = 20_000
    batch: int = 12
    frames: int = 32
    peak_lr: float = 8e-4
    warmup: int = 200
    betas: tuple[float, ...] = (0.9, 0.99)
    weight_decay: float = 0.01
    clip: float = 1.0
    average: float = 0.999
    quantize_from: int = 300
    freeze_from: int | None = None
    adversarial_from: int | None = None
    codebook_decay: float = 0.98
    revive_below: float = 0.1
    phone_delay: int = 3
    teachers: tuple[TeacherConfig, ...] = ()  # of content, besides the phones (codec/teachers.py)
    mix: dict[str, float] = field(default_factory=dict)  # by source: how often it is drawn, against its length
    seed: int = 0
    workers: int = 0  # processes, besides the one that trains, that prepare crops ahead
    report_every: int = 50
    save_every: int = 500
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    weights: LossWeights = field(default_factory=LossWeights)
    discriminators: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)

    def __post_init__(self) -> None:
        if self.delay is not None and (self.delay < HEAD_STEP or self.delay % HEAD_STEP):
            raise UserError(
                f"delay must be a multiple of {HEAD_STEP} samples, a step of the waveform head, not {self.delay}"
            )

    def new_codec(self) -> Codec:
        """Return the codec that training begins with."""
        if self.init is None:
            if self.grow_to is not None:
                raise UserError("grow_to needs init, the codec that grows")
            return Codec(preset(self.codec))
        codec = Codec.from_pretrained(self.init)
        if self.grow_to is None:
            return codec
        return grow(codec, replace(preset(self.grow_to), delay=codec.config.delay))


def preset(name: str) -> CodecConfig:
    """Return the preset of this name. Raises `UserError` if there is none."""
    if name not in presets.PRESETS:
        raise UserError(f"codec: unknown preset '{name}'; there are {', '.join(presets.PRESETS)}")
    return presets.PRESETS[name]()


def train(
    config: CodecTrainConfig,
    source: CropSource,
    folder: str,
    resume: bool = False,
    device: str = "cpu",
    held_out: Sequence[HeldOutSpeech] = (),
    judge: Judge | None = None,
) -> Codec:
    """Train to `config.steps`, with checkpoints in `folder`, where the averaged codec is saved as well."""
    trainer = CodecTrainer(config, source, torch.device(device), held_out, judge)
    run.train(trainer, config, folder, resume, "codec")
    return trainer.codec


class CodecTrainer:
    """Codec, phone head, listener, discriminators and their optimizers."""

    def __init__(
        self,
        config: CodecTrainConfig,
        source: CropSource,
        device: torch.device,
        held_out: Sequence[HeldOutSpeech] = (),
        judge: Judge | None = None,
    ):
        torch.manual_seed(config.seed)
        self.config, self.source, self.device = config, source, device
        self.held_out, self.judge = held_out, judge
        crops = StepCrops(source, config.seed, config.batch, config.frames, distributed.rank())
        self.loader = StepLoader(crops, config.steps, config.workers)
        self.is_quantized = config.init is not None  # as of the latest step
        codec = config.new_codec()
        if config.delay is not None:
            codec.config = replace(codec.config, delay=config.delay)
        self.codec = codec.float().to(device).train()
        for book in self.codec.quantizer.codebooks:
            book.restart_averages()  # type: ignore[operator]
        self.phone_head = nn.Conv1d(self.codec.config.latent, len(source.phones), config.phone_delay + 1).to(device)
        self.listener = Listener(len(source.phones)).to(device)
        self.modules = nn.ModuleDict({"codec": self.codec, "phone_head": self.phone_head, "listener": self.listener})
        self.teachers = Teachers(config.teachers, self.codec.config.latent, device).to(device)
        if config.teachers:
            self.modules["teachers"] = self.teachers
        distributed.broadcast_weights(self.modules)
        self.average = WeightAverage(self.codec, config.average)
        self.mel = MultiScaleMel().to(device)
        adam: dict[str, Any] = {"lr": 0.0, "betas": config.betas, "weight_decay": config.weight_decay}
        self.optimizer = torch.optim.AdamW(self.modules.parameters(), **adam, fused=True)
        self.discriminators = self.optimizer_d = None
        if config.adversarial_from is not None:
            self.discriminators = Discriminators(config.discriminators).to(device).train()
            distributed.broadcast_weights(self.discriminators)
            self.optimizer_d = torch.optim.AdamW(self.discriminators.parameters(), **adam, fused=True)
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bf16(device))

    def step(self, step: int) -> dict[str, Tensor]:
        """Take one optimizer step and return the terms of the loss."""
        config = self.config
        seed_step(config.seed, step)
        generator = shared_generator(config.seed, step)
        crops, random = self.loader.take(step)
        crops = crops.to(self.device)
        frozen = config.freeze_from is not None and step >= config.freeze_from
        self.is_quantized = config.init is not None or step >= config.quantize_from
        if config.init is None and step == config.quantize_from:
            self._start_codebooks(random, generator)
        rate = learning_rate(step, config.steps, config.peak_lr, config.warmup)
        for optimizer in filter(None, (self.optimizer, self.optimizer_d)):
            optimizer.param_groups[0]["lr"] = rate
        terms, values = self._losses(crops, step, frozen, generator)
        weights = vars(config.weights) | self.teachers.weights
        loss = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        norm = descend(loss, self.optimizer, config.clip)
        self.average.update(self.codec, step)
        return {**terms, **values, "grad_norm": norm}

    def _losses(
        self, crops: Crops, step: int, frozen: bool, generator: torch.Generator
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the terms of the loss, and more values to report. Discriminators that have joined take a step."""
        with self.autocast, torch.set_grad_enabled(not frozen):
            latent = self.codec.encoder(crops.augmented)[0].float()
        terms: dict[str, Tensor] = {}
        values: dict[str, Tensor] = {}
        if frozen:
            quantized = self.codec.quantizer.decode(self.codec.quantizer.encode(latent))
        else:
            quantized, terms, values = self._quantize(latent, crops, step, generator)
        with self.autocast:
            features = self.codec.decoder.features(quantized)[0].float()
        ours, pitch = self._waveform(features, crops)
        delay = self.codec.config.delay
        target = crops.pcm[:, : crops.pcm.shape[1] - delay]
        ours = ours[:, delay:]
        terms = {**terms, **pitch, "mel": self.mel(ours, target), **self._listener_terms(ours, target, crops.phones)}
        if self.discriminators is not None and step >= (self.config.adversarial_from or 0):
            adversarial, values["discriminator"] = self._adversarial(ours, target)
            terms |= adversarial
        return terms, values

    def _quantize(
        self, latent: Tensor, crops: Crops, step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Return the quantized latent (straight-through), its loss terms, and codebook perplexities."""
        if not self.is_quantized:
            return latent, self._semantic_terms(latent, crops), {}
        config, values = self.config, dict[str, Tensor]()
        residual, total, first = latent.detach(), torch.zeros_like(latent), None
        for k, book in enumerate(self.codec.quantizer.codebooks):
            flat = residual.reshape(-1, residual.shape[-1])
            codes = book.fast_nearest(flat)  # type: ignore[operator]
            vectors = book.lookup(codes).view_as(latent)  # type: ignore[operator]
            gathered = distributed.gather(flat), distributed.gather(codes)
            book.update(*gathered, config.codebook_decay, config.revive_below, generator)  # type: ignore[operator]
            values[f"perplexity_{k}"] = _perplexity(book.usage)  # type: ignore[arg-type]
            residual, total = residual - vectors, total + vectors
            first = vectors if first is None else first
        assert first is not None
        commitment = F.mse_loss(latent, total) / latent.detach().var().clamp(min=1e-6)
        terms = {"commitment": commitment, **self._semantic_terms(latent + (first - latent).detach(), crops)}
        return latent + (total - latent).detach(), terms, values

    @torch.no_grad()
    def _start_codebooks(self, random: np.random.Generator, generator: torch.Generator) -> None:
        """Initialise each codebook by k-means on the residuals of a few batches."""
        crops = [self.source.crops(random, self.config.batch, self.config.frames) for _ in range(KMEANS_BATCHES)]
        residual = torch.cat([self.codec.encoder(c.pcm.to(self.device))[0].flatten(0, 1) for c in crops])
        residual = distributed.gather(residual)
        for book in self.codec.quantizer.codebooks:
            book.kmeans_init(residual, generator)  # type: ignore[operator]
            residual = residual - book.lookup(book.fast_nearest(residual))  # type: ignore[operator]

    def _semantic_terms(self, x: Tensor, crops: Crops) -> dict[str, Tensor]:
        logits = self.phone_head(x.transpose(1, 2)).transpose(1, 2)
        labels = crops.phones[:, : logits.shape[1]]
        phones = cross_entropy(logits, labels)  # 0 if all are recordings without phone labels
        return {"phone": phones, **self.teachers(x, crops)}

    def _waveform(self, features: Tensor, crops: Crops) -> tuple[Tensor, dict[str, Tensor]]:
        """Return `pcm [B, N]` and, if the head has a pitch, its terms. In training the true pitch drives the pulses."""
        head = self.codec.decoder.head
        if not isinstance(head, HarmonicHead):
            return head(features)[0], {}
        controls = head.control(features)
        shift = self.codec.config.delay // head.hop - 1  # pitch at the end of a block, `delay` samples earlier
        f0 = F.pad(crops.f0, (shift, 0))[:, : crops.f0.shape[1]]
        error, voicing = pitch_losses(controls, f0)
        pcm, _ = head.synthesize(controls, f0, head.init_state(len(f0)))
        return pcm, {"f0": error, "voicing": voicing}

    def _listener_terms(self, ours: Tensor, target: Tensor, phones: Tensor) -> dict[str, Tensor]:
        """Return the listener's own loss on the original, and its distance between copy and original."""
        reference = self.listener(target)
        known = cross_entropy(reference[0], phones[:, : reference[0].shape[1]])
        return {"listener": known, "understood": self.listener.distance(ours, reference)}

    def _adversarial(self, ours: Tensor, target: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Take one step of the discriminators, then return the decoder's terms, and the discriminators' loss."""
        assert self.discriminators is not None and self.optimizer_d is not None
        loss = self.discriminators.loss(ours.detach(), target)
        descend(loss, self.optimizer_d, self.config.clip)
        return self.discriminators.generator_terms(ours, target), loss

    def content(self, step: int) -> dict[str, Any]:
        """Return everything that the next step depends on."""
        books = {
            f"{k}.{n}": getattr(b, n)
            for k, b in enumerate(self.codec.quantizer.codebooks)
            for n in ("embed_sum", "usage")
        }
        content = {
            "step": step,
            "modules": self.modules.state_dict(),
            "codebooks": books,
            "average": self.average.values,
            "optimizer": self.optimizer.state_dict(),
        }
        if self.discriminators is not None and self.optimizer_d is not None:
            content |= {
                "discriminators": self.discriminators.state_dict(),
                "optimizer_d": self.optimizer_d.state_dict(),
            }
        return content

    def restore(self, content: dict[str, Any] | None) -> int:
        """Restore a checkpoint and return the step to continue from."""
        if content is None:
            return 0
        self.modules.load_state_dict(content["modules"])
        for key, value in content["codebooks"].items():
            k, name = key.split(".")
            getattr(self.codec.quantizer.codebooks[int(k)], name).copy_(value)
        self.average.values = {name: value.to(self.device) for name, value in content["average"].items()}
        self.optimizer.load_state_dict(content["optimizer"])
        if self.discriminators is not None and self.optimizer_d is not None and "discriminators" in content:
            self.discriminators.load_state_dict(content["discriminators"])
            self.optimizer_d.load_state_dict(content["optimizer_d"])
        return content["step"]

    def validate(self) -> dict[str, float]:
        """Return the values of the averaged codec on held-out speech; nothing before the codec is quantized."""
        if not self.held_out or not self.is_quantized:
            return {}
        self.codec.eval()  # training drops layers at random
        with self.average.in_place_of(self.codec):
            values = held_out_values(self.codec, self.held_out, self.mel, self.judge)
        self.codec.train()
        return values

    def export(self, folder: Path) -> None:
        """Write the averaged codec."""
        self._averaged().save_pretrained(folder)

    def log_samples(self, run: RunFolder, step: int) -> None:
        """Log one decoded sample."""
        codec = self._averaged()
        random = step_random(self.config.seed, -step % (1 << 31), distributed.rank())  # not the data of a step
        pcm = self.source.crops(random, 1, 75).pcm.to(self.device)
        run.sample(step, "original", pcm[0].cpu(), SAMPLE_RATE)
        run.sample(step, "decoded", codec.decode(codec.encode(pcm))[0].cpu(), SAMPLE_RATE)

    def _averaged(self) -> Codec:
        codec = Codec(self.codec.config).to(self.device).eval()
        codec.load_state_dict(self.codec.state_dict())
        self.average.copy_to(codec)
        return codec


def _perplexity(usage: Tensor) -> Tensor:
    p = usage / usage.sum()
    return (-(p * p.clamp(min=1e-9).log()).sum()).exp()
