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

import torch
from torch import Tensor

from speechgpt2.codec import config as presets
from speechgpt2.codec.config import CodecConfig
from speechgpt2.codec.crops import Crops, CropSource
from speechgpt2.codec.discriminators import DiscriminatorConfig, Discriminators
from speechgpt2.codec.growth import grow
from speechgpt2.codec.losses import CodebookUpdates, CodecLosses, Phase
from speechgpt2.codec.model import Codec
from speechgpt2.codec.teachers import TeacherConfig, Teachers
from speechgpt2.codec.validation import HeldOutSpeech, Judge, held_out_values
from speechgpt2.errors import UserError
from speechgpt2.training import distributed, run
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
    """Makes the crops of a step. Each row is drawn by its number among the rows of all processes."""

    source: CropSource
    seed: int
    batch: int
    frames: int
    rank: int

    def __call__(self, step: int) -> Crops:
        """Return the crops of a step."""
        return self._rows(step, self.rank * self.batch, self.batch)

    def many(self, step: int, batches: int, processes: int) -> list[Crops]:
        """Return further batches of a step, other ones in each process."""
        first = (processes + self.rank * batches) * self.batch
        return [self._rows(step, first + i * self.batch, self.batch) for i in range(batches)]

    def _rows(self, step: int, first: int, count: int) -> Crops:
        randoms = [step_random(self.seed, step, row) for row in range(first, first + count)]
        return Crops.joined([self.source.crops(random, 1, self.frames) for random in randoms])


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
    codec: Codec | None = None,
) -> Codec:
    """Train `codec`, or the one that `config` names, to `config.steps`.

    `folder` gets checkpoints and the averaged codec.
    """
    trainer = CodecTrainer(config, source, torch.device(device), held_out, judge, codec)
    run.train(trainer, config, folder, resume, "codec")
    return trainer.codec


class CodecTrainer:
    """The codec with its losses, discriminators and their optimizers."""

    def __init__(
        self,
        config: CodecTrainConfig,
        source: CropSource,
        device: torch.device,
        held_out: Sequence[HeldOutSpeech] = (),
        judge: Judge | None = None,
        codec: Codec | None = None,
    ):
        torch.manual_seed(config.seed)
        self.config, self.source, self.device = config, source, device
        self.held_out, self.judge = held_out, judge
        self.crops = StepCrops(source, config.seed, config.batch, config.frames, distributed.rank())
        self.loader = StepLoader(self.crops, config.steps, config.workers)
        self.is_quantized = config.init is not None  # whether codes mean anything yet
        codec = codec or config.new_codec()
        if config.delay is not None:
            codec.config = replace(codec.config, delay=config.delay)
        self.codec = codec.float().to(device).train()
        self.codec.quantizer.restart_averages()
        updates = CodebookUpdates(config.codebook_decay, config.revive_below)
        teachers = Teachers(config.teachers, codec.config.latent, device)
        self.losses = CodecLosses(codec, len(source.phones), config.phone_delay, teachers, updates).to(device)
        distributed.broadcast_weights(self.losses)
        self.overlapped = distributed.overlapped(self.losses, has_unused=config.freeze_from is not None)
        self.average = WeightAverage(self.codec, config.average)
        adam: dict[str, Any] = {"lr": 0.0, "betas": config.betas, "weight_decay": config.weight_decay}
        self.optimizer = torch.optim.AdamW(self.losses.parameters(), **adam, fused=True)
        self.discriminators = self.optimizer_d = None
        if config.adversarial_from is not None:
            self.discriminators = Discriminators(config.discriminators).to(device).train()
            distributed.broadcast_weights(self.discriminators)
            self.overlapped_d = distributed.overlapped(self.discriminators)
            self.optimizer_d = torch.optim.AdamW(self.discriminators.parameters(), **adam, fused=True)

    def step(self, step: int) -> dict[str, Tensor]:
        """Take one optimizer step and return the terms of the loss."""
        config = self.config
        seed_step(config.seed, step)
        generator = shared_generator(config.seed, step)
        crops = self.loader.take(step).to(self.device)
        phase = self._phase(step)
        if config.init is None and step == config.quantize_from:
            self._start_codebooks(step, generator)
        rate = learning_rate(step, config.steps, config.peak_lr, config.warmup)
        for optimizer in filter(None, (self.optimizer, self.optimizer_d)):
            optimizer.param_groups[0]["lr"] = rate
        ours, target, terms, values = self.overlapped(crops, phase, generator)
        if self.discriminators is not None and step >= (config.adversarial_from or 0):
            values["discriminator"] = self._step_discriminators(ours.detach(), target)
            terms |= self.discriminators.generator_terms(ours, target)
        weights = vars(config.weights) | self.losses.teachers.weights
        total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        norm = descend(total, self.optimizer, config.clip)
        self.average.update(self.codec, step)
        return {**_means(terms | values), "grad_norm": norm}

    def _phase(self, step: int) -> Phase:
        """Return what a step trains."""
        config = self.config
        self.is_quantized = config.init is not None or step >= config.quantize_from
        return Phase(self.is_quantized, config.freeze_from is not None and step >= config.freeze_from)

    @torch.no_grad()
    def _start_codebooks(self, step: int, generator: torch.Generator) -> None:
        """Initialise each codebook by k-means on the residuals of a few batches."""
        crops = self.crops.many(step, KMEANS_BATCHES, distributed.world_size())
        residual = torch.cat([self.codec.encoder(c.pcm.to(self.device))[0].flatten(0, 1) for c in crops])
        residual = distributed.gather(residual)
        for book in self.codec.quantizer.codebooks:
            book.kmeans_init(residual, generator)  # type: ignore[operator]
            residual = residual - book.lookup(book.fast_nearest(residual))  # type: ignore[operator]

    def _step_discriminators(self, ours: Tensor, target: Tensor) -> Tensor:
        """Take one step of the discriminators and return their loss."""
        assert self.discriminators is not None and self.optimizer_d is not None
        loss = self.discriminators.loss(self.overlapped_d(torch.cat([target, ours])))
        descend(loss, self.optimizer_d, self.config.clip)
        return loss

    def content(self, step: int) -> dict[str, Any]:
        """Return everything that the next step depends on."""
        books = {
            f"{k}.{n}": getattr(b, n)
            for k, b in enumerate(self.codec.quantizer.codebooks)
            for n in ("embed_sum", "usage")
        }
        content = {
            "step": step,
            "modules": self.losses.state_dict(),
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
        self.losses.load_state_dict(content["modules"])
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
            values = held_out_values(self.codec, self.held_out, self.losses.mel, self.judge)
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


def _means(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the means of scalars over all processes, by one message."""
    return dict(zip(terms, distributed.average(torch.stack([term.float() for term in terms.values()]))))
