"""Training of the codec: one loop, whose phases are switched on by step.

    0 … quantize_from       continuous autoencoder
    quantize_from …         residual quantizer: k-means, then moving averages; straight-through gradients
    freeze_from …           encoder and codebooks fixed, so that codes stay what they are; the decoder goes on
    adversarial_from …      discriminators join (decoder only)

What the encoder hears went through rooms and noise, what the decoder is to say did not. Supervision besides the
waveform: the pitch of every step; the phone being spoken, told from the first codebook's vectors from its frame on (the
encoder is causal, so it learns of a sound late), which ties codes to content; and what a listener hears in the copy,
which ties the decoder to it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechgpt2.codec import config as presets
from speechgpt2.codec.config import CodecConfig
from speechgpt2.codec.discriminators import DiscriminatorConfig, Discriminators
from speechgpt2.codec.growth import grow
from speechgpt2.codec.harmonic import HarmonicHead
from speechgpt2.codec.listener import Listener
from speechgpt2.codec.losses import MultiScaleMel, pitch_losses
from speechgpt2.codec.model import Codec
from speechgpt2.errors import UserError
from speechgpt2.training import distributed, run
from speechgpt2.training.labels import cross_entropy
from speechgpt2.training.run import Average, Run, bf16_pays, generators, learning_rate
from speechgpt2.types import FRAME_SIZE, SAMPLE_RATE

KMEANS_BATCHES = 32  # that the codebooks start from
STEP = FRAME_SIZE // 4  # samples


class CropSource(Protocol):
    """Where crops come from: see `speechgpt2.corpus.codec_dataset`."""

    phones: tuple[str, ...]

    def crops(self, random: np.random.Generator, batch: int, frames: int) -> Crops: ...


@dataclass(frozen=True)
class Crops:
    """A batch: `pcm [B, 960·T]` float32, `heard` the same through rooms and noise, `f0 [B, 4·T]` Hz (0 unvoiced),
    `phones [B, T]` (−1 unknown).
    """

    pcm: Tensor
    heard: Tensor
    f0: Tensor
    phones: Tensor


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
    """A run. `codec` is a preset's name. Crops are `frames` long (25 per second)."""

    codec: str = "mini"
    init: str | None = None  # a codec folder to go on from
    grow_to: str | None = None  # a deeper preset that `init` grows to, see `codec.growth`
    delay: int | None = None  # samples by which sound is to trail its codes, where another than the codec's is wanted
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
    seed: int = 0
    report_every: int = 50
    save_every: int = 500
    weights: LossWeights = field(default_factory=LossWeights)
    discriminators: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)

    def __post_init__(self) -> None:
        if self.delay is not None and (self.delay < STEP or self.delay % STEP):
            raise UserError(
                f"delay must be a multiple of {STEP} samples, a step of the waveform head, not {self.delay}"
            )

    def new_codec(self) -> Codec:
        """The codec that training begins with."""
        if self.init is None:
            if self.grow_to is not None:
                raise UserError("grow_to needs init, the codec that grows")
            return Codec(preset(self.codec))
        codec = Codec.from_pretrained(self.init)
        if self.grow_to is None:
            return codec
        return grow(codec, replace(preset(self.grow_to), delay=codec.config.delay))


def preset(name: str) -> CodecConfig:
    """The preset of this name. Errors: `UserError` if there is none."""
    if name not in presets.PRESETS:
        raise UserError(f"codec: unknown preset '{name}'; there are {', '.join(presets.PRESETS)}")
    return presets.PRESETS[name]()


def train(
    config: CodecTrainConfig, source: CropSource, folder: str, resume: bool = False, device: str = "cpu"
) -> Codec:
    """Train to `config.steps`, checkpointing in `folder`; the result is also saved there as a codec folder."""
    trainer = CodecTrainer(config, source, torch.device(device))
    run.train(trainer, config, folder, resume, "codec")
    return trainer.codec


class CodecTrainer:
    """Codec, phone head, listener, discriminators and their optimizers; `step(i)` takes one training step."""

    def __init__(self, config: CodecTrainConfig, source: CropSource, device: torch.device):
        torch.manual_seed(config.seed)
        self.config, self.source, self.device = config, source, device
        codec = config.new_codec()
        if config.delay is not None:
            codec.config = replace(codec.config, delay=config.delay)
        self.codec = codec.float().to(device).train()
        for book in self.codec.quantizer.codebooks:
            book.go_on()  # type: ignore[operator]
        self.phone_head = nn.Conv1d(self.codec.config.latent, len(source.phones), config.phone_delay + 1).to(device)
        self.listener = Listener(len(source.phones)).to(device)
        self.modules = nn.ModuleDict({"codec": self.codec, "phone_head": self.phone_head, "listener": self.listener})
        distributed.agree(self.modules)
        self.average = Average(self.codec, config.average)
        self.mel = MultiScaleMel().to(device)
        adam: dict[str, Any] = {"lr": 0.0, "betas": config.betas, "weight_decay": config.weight_decay}
        self.optimizer = torch.optim.AdamW(self.modules.parameters(), **adam, fused=True)
        self.discriminators = self.optimizer_d = None
        if config.adversarial_from is not None:
            self.discriminators = Discriminators(config.discriminators).to(device).train()
            distributed.agree(self.discriminators)
            self.optimizer_d = torch.optim.AdamW(self.discriminators.parameters(), **adam, fused=True)
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=bf16_pays(device))

    def step(self, step: int) -> dict[str, Tensor]:
        """One optimizer step; returns the terms of the loss."""
        config = self.config
        random, generator = generators(config.seed, step)
        crops = self.source.crops(random, config.batch, config.frames)
        crops = Crops(*(t.to(self.device) for t in (crops.pcm, crops.heard, crops.f0, crops.phones)))
        frozen = config.freeze_from is not None and step >= config.freeze_from
        if config.init is None and step == config.quantize_from:
            self._start_codebooks(random, generator)
        rate = learning_rate(step, config.steps, config.peak_lr, config.warmup)
        for optimizer in filter(None, (self.optimizer, self.optimizer_d)):
            optimizer.param_groups[0]["lr"] = rate
        terms, values = self._losses(crops, step, frozen, generator)
        total = torch.stack([getattr(config.weights, name) * term for name, term in terms.items()]).sum()
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        distributed.average_gradients(self.modules.parameters())
        norm = nn.utils.clip_grad_norm_(self.modules.parameters(), config.clip)
        self.optimizer.step()
        self.average.update(self.codec, step)
        return {**terms, **values, "grad_norm": norm}

    def _losses(
        self, crops: Crops, step: int, frozen: bool, generator: torch.Generator
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        with self.autocast, torch.set_grad_enabled(not frozen):
            latent = self.codec.encoder(crops.heard)[0].float()
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
        terms = {**terms, **pitch, "mel": self.mel(ours, target), **self._understanding(ours, target, crops.phones)}
        if self.discriminators is not None and step >= (self.config.adversarial_from or 0):
            terms |= self._adversarial(ours, target, values)
        return terms, values

    def _quantize(
        self, latent: Tensor, crops: Crops, step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Quantized latent (straight-through), the terms that shape it, and codebook perplexities."""
        config = self.config
        terms: dict[str, Tensor] = {}
        values: dict[str, Tensor] = {}
        if config.init is None and step < config.quantize_from:
            return latent, self._phone_loss(latent, crops), {}
        residual, total, first = latent.detach(), torch.zeros_like(latent), None
        for k, book in enumerate(self.codec.quantizer.codebooks):
            flat = residual.reshape(-1, residual.shape[-1])
            codes = book.fast_nearest(flat)  # type: ignore[operator]
            vectors = book.lookup(codes).view_as(latent)  # type: ignore[operator]
            everyone = distributed.gather(flat), distributed.gather(codes)
            book.learn(*everyone, config.codebook_decay, config.revive_below, generator)  # type: ignore[operator]
            values[f"perplexity_{k}"] = _perplexity(book.usage)  # type: ignore[arg-type]
            residual, total = residual - vectors, total + vectors
            first = vectors if first is None else first
        assert first is not None
        terms["commitment"] = F.mse_loss(latent, total) / latent.detach().var().clamp(min=1e-6)
        terms |= self._phone_loss(latent + (first - latent).detach(), crops)
        return latent + (total - latent).detach(), terms, values

    @torch.no_grad()
    def _start_codebooks(self, random: np.random.Generator, generator: torch.Generator) -> None:
        """k-means on the latents of a few batches, one codebook on what the ones before leave."""
        crops = [self.source.crops(random, self.config.batch, self.config.frames) for _ in range(KMEANS_BATCHES)]
        residual = torch.cat([self.codec.encoder(c.pcm.to(self.device))[0].flatten(0, 1) for c in crops])
        residual = distributed.gather(residual)
        for book in self.codec.quantizer.codebooks:
            book.kmeans_init(residual, generator)  # type: ignore[operator]
            residual = residual - book.lookup(book.fast_nearest(residual))  # type: ignore[operator]

    def _phone_loss(self, x: Tensor, crops: Crops) -> dict[str, Tensor]:
        logits = self.phone_head(x.transpose(1, 2)).transpose(1, 2)
        labels = crops.phones[:, : logits.shape[1]]
        return {"phone": cross_entropy(logits, labels)}  # recordings alone know no phones

    def _waveform(self, features: Tensor, crops: Crops) -> tuple[Tensor, dict[str, Tensor]]:
        """`pcm [B, N]`, and the pitch terms where the head has a pitch: the true one drives the pulses in training."""
        head = self.codec.decoder.head
        if not isinstance(head, HarmonicHead):
            return head(features)[0], {}
        controls = head.control(features)
        shift = self.codec.config.delay // head.hop - 1  # the pitch at a block's end, `delay` samples earlier
        f0 = F.pad(crops.f0, (shift, 0))[:, : crops.f0.shape[1]]
        error, voicing = pitch_losses(controls, f0)
        pcm, _ = head.synthesize(controls, f0, head.init_state(len(f0)))
        return pcm, {"f0": error, "voicing": voicing}

    def _understanding(self, ours: Tensor, target: Tensor, phones: Tensor) -> dict[str, Tensor]:
        """What the listener learns by, and how far it hears other things in our copy."""
        heard = self.listener(target)
        known = cross_entropy(heard[0], phones[:, : heard[0].shape[1]])
        return {"listener": known, "understood": self.listener.distance(ours, heard)}

    def _adversarial(self, ours: Tensor, target: Tensor, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Steps the discriminators, then returns the decoder's terms."""
        assert self.discriminators is not None and self.optimizer_d is not None
        loss = self.discriminators.loss(ours.detach(), target)
        self.optimizer_d.zero_grad(set_to_none=True)
        loss.backward()
        distributed.average_gradients(self.discriminators.parameters())
        nn.utils.clip_grad_norm_(self.discriminators.parameters(), self.config.clip)
        self.optimizer_d.step()
        values["discriminator"] = loss
        return self.discriminators.generator_terms(ours, target)

    def content(self, step: int) -> dict[str, Any]:
        """Everything the next step depends on."""
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
        """Take up a checkpoint; returns the step to go on from."""
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

    def export(self, run: Run, step: int) -> None:
        """Write the averaged codec to the run's folder and log one sample, decoded from its codes."""
        codec = Codec(self.codec.config).to(self.device).eval()
        codec.load_state_dict(self.codec.state_dict())
        self.average.copy_to(codec)
        codec.save_pretrained(run.folder)
        random, _ = generators(self.config.seed, -step % (1 << 31))
        pcm = self.source.crops(random, 1, 75).pcm.to(self.device)
        run.sample(step, "original", pcm[0].cpu(), SAMPLE_RATE)
        run.sample(step, "decoded", codec.decode(codec.encode(pcm))[0].cpu(), SAMPLE_RATE)


def _perplexity(usage: Tensor) -> Tensor:
    p = usage / usage.sum()
    return (-(p * p.clamp(min=1e-9).log()).sum()).exp()
