"""Losses of codec training: log-mel distances at several resolutions, and pitch.

Source of the multi-resolution distance: Yamamoto et al., Parallel WaveGAN, 2020 (https://arxiv.org/abs/1910.11480).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechgpt2.codec.harmonic import Controls
from speechgpt2.codec.mel import log_mel, slaney_filters
from speechgpt2.types import SAMPLE_RATE


class MultiScaleMel(nn.Module):
    """Mean L1 distance of log-mel spectra of two `pcm [B, N]`, over windows of several lengths."""

    def __init__(self, windows: tuple[int, ...] = (512, 1024, 2048), bins: tuple[int, ...] = (40, 80, 120)):
        super().__init__()
        self.windows = windows
        for window, n in zip(windows, bins):
            self.register_buffer(f"filters_{window}", torch.from_numpy(slaney_filters(window, n, SAMPLE_RATE)))
            self.register_buffer(f"window_{window}", torch.hann_window(window))

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
        error.sum() / voiced.sum().clamp(min=1),
        F.binary_cross_entropy_with_logits(controls.voicing, voiced.float()),
    )
