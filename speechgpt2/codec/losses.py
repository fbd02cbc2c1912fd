"""The losses of the codec on a batch, as one module, whose gradients are averaged while the backward pass runs.

Where a term is a sum divided by a count, or relative to a mean, the divisor is that of all processes. So the gradient
does not depend on how a batch is divided among them.

Source of the multi-resolution distance: Yamamoto et al., Parallel WaveGAN, 2020 (https://arxiv.org/abs/1910.11480).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechgpt2.codec.crops import Crops
from speechgpt2.codec.harmonic import Controls, HarmonicHead
from speechgpt2.codec.listener import Listener
from speechgpt2.codec.mel import log_mel, slaney_filters
from speechgpt2.codec.model import Codec
from speechgpt2.codec.teachers import Teachers
from speechgpt2.nn.precision import has_fast_bf16
from speechgpt2.training import distributed
from speechgpt2.training.labels import cross_entropy
from speechgpt2.types import SAMPLE_RATE


class CodebookUpdates(NamedTuple):
    """How the codebooks follow the vectors, see `Codebook.update`."""

    decay: float
    revive_below: float


class Phase(NamedTuple):
    """What a step trains: whether the latent is quantized, and whether encoder and codebooks are frozen."""

    is_quantized: bool
    is_frozen: bool


class CodecOutput(NamedTuple):
    """The result of `CodecLosses`.

    Attributes:
        ours: decoded audio, `[B, N]`.
        target: the part of the original that it is to equal, `[B, N]`.
        terms: the terms of the loss.
        values: further scalars to report.
    """

    ours: Tensor
    target: Tensor
    terms: dict[str, Tensor]
    values: dict[str, Tensor]


class CodecLosses(nn.Module):
    """Codec, phone head, listener and teachers' heads.

    Args:
        codec: The codec.
        phones: The number of phone labels.
        phone_delay: Frames by which the prediction of a phone trails it.
        teachers: Further teachers.
        updates: How the codebooks learn.
    """

    def __init__(self, codec: Codec, phones: int, phone_delay: int, teachers: Teachers, updates: CodebookUpdates):
        super().__init__()
        self.codec, self.updates = codec, updates
        self.phone_head = nn.Conv1d(codec.config.latent, phones, phone_delay + 1)
        self.listener = Listener(phones)
        self.teachers = teachers
        self.mel = MultiScaleMel()

    def forward(self, crops: Crops, phase: Phase, generator: torch.Generator) -> CodecOutput:
        """Return the decoded audio and the terms of the loss. In training the codebooks are updated, too.

        Args:
            crops: The batch, on the codec's device.
            phase: What is trained.
            generator: The source of randomness of the codebooks, the same in all processes.
        """
        device = crops.pcm.device
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bf16(device))
        with autocast, torch.set_grad_enabled(not phase.is_frozen):
            latent = self.codec.encoder(crops.augmented)[0].float()
        quantized, terms, values = self._quantize(latent, crops, phase, generator)
        with autocast:
            features = self.codec.decoder.features(quantized)[0].float()
        ours, pitch = self._waveform(features, crops)
        delay = self.codec.config.delay
        ours, target = ours[:, delay:], crops.pcm[:, : crops.pcm.shape[1] - delay]
        listener = self._listener_terms(ours, target, crops.phones)
        return CodecOutput(ours, target, {**terms, **pitch, "mel": self.mel(ours, target), **listener}, values)

    def _quantize(
        self, latent: Tensor, crops: Crops, phase: Phase, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Return the quantized latent (straight-through), its loss terms, and codebook perplexities."""
        quantizer = self.codec.quantizer
        if phase.is_frozen:
            return quantizer.decode(quantizer.encode(latent)), {}, {}
        if not phase.is_quantized:
            return latent, self._semantic_terms(latent, crops), {}
        values: dict[str, Tensor] = {}
        residual, total, first = latent.detach(), torch.zeros_like(latent), None
        for k, book in enumerate(quantizer.codebooks):
            flat = residual.reshape(-1, residual.shape[-1])
            codes = book.fast_nearest(flat)  # type: ignore[operator]
            vectors = book.lookup(codes).view_as(latent)  # type: ignore[operator]
            gathered = distributed.gather(flat), distributed.gather(codes)
            book.update(*gathered, *self.updates, generator)  # type: ignore[operator]
            values[f"perplexity_{k}"] = _perplexity(book.usage)  # type: ignore[arg-type]
            residual, total = residual - vectors, total + vectors
            first = vectors if first is None else first
        assert first is not None
        commitment = F.mse_loss(latent, total) / _variance(latent).clamp(min=1e-6)
        semantic = self._semantic_terms(latent + (first - latent).detach(), crops)
        return latent + (total - latent).detach(), {"commitment": commitment, **semantic}, values

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


def _variance(x: Tensor) -> Tensor:
    """Return the variance of the elements of `x` in all processes, without gradient."""
    moments = distributed.average(torch.stack([x.mean(), x.square().mean()]))
    return moments[1] - moments[0].square()


def _perplexity(usage: Tensor) -> Tensor:
    p = usage / usage.sum()
    return (-(p * p.clamp(min=1e-9).log()).sum()).exp()


class MultiScaleMel(nn.Module):
    """Mean L1 distance of log-mel spectra of two `pcm [B, N]`, over windows of several lengths."""

    def __init__(self, windows: tuple[int, ...] = (512, 1024, 2048), bins: tuple[int, ...] = (40, 80, 120)):
        super().__init__()
        self.windows = windows
        for window, n in zip(windows, bins):
            self.register_buffer(f"filters_{window}", torch.from_numpy(slaney_filters(window, n, SAMPLE_RATE)), False)
            self.register_buffer(f"window_{window}", torch.hann_window(window), False)

    def forward(self, pcm: Tensor, target: Tensor) -> Tensor:
        """Return the distance of `pcm [B, N]` from `target [B, N]`, which gets no gradient."""
        losses = []
        for window in self.windows:
            with torch.no_grad():
                target_mel = self._log_mel(target, window)
            losses.append(F.l1_loss(self._log_mel(pcm, window), target_mel))
        return torch.stack(losses).mean()

    def _log_mel(self, pcm: Tensor, window: int) -> Tensor:
        return log_mel(pcm, window // 4, getattr(self, f"window_{window}"), getattr(self, f"filters_{window}"))


def pitch_losses(controls: Controls, f0: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean |Δ log F0| over voiced steps and the cross-entropy of voicing.

    Args:
        controls: Predictions.
        f0: True pitch in Hz, `[B, T]`, 0 where unvoiced.
    """
    voiced = f0 > 0
    error = (controls.log_f0 - f0.clamp(min=1.0).log()).abs() * voiced
    return (
        distributed.part_of_mean(error.sum(), voiced.sum()),
        F.binary_cross_entropy_with_logits(controls.voicing, voiced.float()),
    )
