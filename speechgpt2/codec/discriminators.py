"""Discriminators for the adversarial phase of codec training: least squares with feature matching.

Waveforms are folded by periods (Kong et al., 2020, https://arxiv.org/abs/2010.05646), and spectrograms have several
resolutions (Jang et al., 2021, https://arxiv.org/abs/2106.07889).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechgpt2.training import distributed

SLOPE = 0.1


@dataclass(frozen=True)
class DiscriminatorConfig:
    """`channels` of the first layers; `periods` and the `windows` of spectrograms are in samples."""

    channels: int = 16
    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    windows: tuple[int, ...] = (512, 1024, 2048)


class Discriminators(nn.Module):
    """All discriminators: `pcm [B, N]` -> the features of every layer of each; the last is its score."""

    def __init__(self, config: DiscriminatorConfig):
        super().__init__()
        self.members = nn.ModuleList(
            [PeriodDiscriminator(period, config.channels) for period in config.periods]
            + [SpectrogramDiscriminator(window, config.channels) for window in config.windows]
        )

    def forward(self, pcm: Tensor) -> list[list[Tensor]]:
        """Return the features of every layer of every discriminator."""
        return [member(pcm) for member in self.members]

    @staticmethod
    def loss(both: list[list[Tensor]]) -> Tensor:
        """Return the loss of what `forward` returned for as many real rows, then decoded ones: targets 1 and 0."""
        terms = []
        for *_, score in both:
            real_score, fake_score = score.chunk(2)
            terms.append((1 - real_score).square().mean() + fake_score.square().mean())
        return torch.stack(terms).mean()

    def generator_terms(self, fake: Tensor, real: Tensor) -> dict[str, Tensor]:
        """Return the generator's loss terms; the discriminators get no gradient.

        `adversarial` has target 1 for `fake`. `features` is the distance of the layers' activations.
        """
        self.requires_grad_(False)
        adversarial, features, scales = [], [], []
        with torch.no_grad():
            real_outputs = self(real)
        for fake_layers, real_layers in zip(self(fake), real_outputs):
            adversarial.append((1 - fake_layers[-1]).square().mean())
            features += [F.l1_loss(a, b) for a, b in zip(fake_layers[:-1], real_layers[:-1])]
            scales += [layer.abs().mean() for layer in real_layers[:-1]]
        self.requires_grad_(True)
        relative = torch.stack(features) / distributed.average(torch.stack(scales)).clamp(min=1e-4)
        return {"adversarial": torch.stack(adversarial).mean(), "features": relative.mean()}


class PeriodDiscriminator(nn.Module):
    """Sees a waveform folded into rows of `period` samples."""

    def __init__(self, period: int, channels: int):
        super().__init__()
        self.period = period
        widths = [1, channels, 2 * channels, 4 * channels, 8 * channels]
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, (5, 1), stride=(3, 1), padding=(2, 0)) for a, b in zip(widths, widths[1:])
        )
        self.score = nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0))

    def forward(self, pcm: Tensor) -> list[Tensor]:
        """Return the features of every layer, the score last."""
        x = pcm[:, : pcm.shape[1] // self.period * self.period].view(len(pcm), 1, -1, self.period)
        return _through(self.layers, self.score, x)


class SpectrogramDiscriminator(nn.Module):
    """Sees a magnitude spectrogram at one resolution."""

    window: Tensor

    def __init__(self, window: int, channels: int):
        super().__init__()
        self.register_buffer("window", torch.hann_window(window))
        widths = [1, channels, channels, channels, channels]
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, (3, 9), stride=(1, 2), padding=(1, 4)) for a, b in zip(widths, widths[1:])
        )
        self.score = nn.Conv2d(channels, 1, 3, padding=1)

    def forward(self, pcm: Tensor) -> list[Tensor]:
        """Return the features of every layer, the score last."""
        n = len(self.window)
        spectrum = torch.stft(pcm, n, n // 4, window=self.window, return_complex=True)
        magnitude = (spectrum.real.square() + spectrum.imag.square() + 1e-9).sqrt()
        return _through(self.layers, self.score, magnitude.transpose(1, 2)[:, None])


def _through(layers: nn.ModuleList, score: nn.Module, x: Tensor) -> list[Tensor]:
    features = []
    for layer in layers:
        x = F.leaky_relu(layer(x), SLOPE)
        features.append(x)
    return [*features, score(x)]
