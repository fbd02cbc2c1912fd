"""Discriminators for the codec's last phase: waveforms folded by periods (Kong et al., 2020) and spectrograms at
several resolutions (Jang et al., 2021), least squares, with feature matching.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.1


@dataclass(frozen=True)
class DiscriminatorConfig:
    """`channels` of the first layers; `periods` in samples, `windows` of the spectrograms in samples."""

    channels: int = 16
    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    windows: tuple[int, ...] = (512, 1024, 2048)


class Discriminators(nn.Module):
    """All of them together. `pcm [B, N]` in; features of every layer out, the last of each being the verdict."""

    def __init__(self, config: DiscriminatorConfig):
        super().__init__()
        self.members = nn.ModuleList(
            [PeriodDiscriminator(period, config.channels) for period in config.periods]
            + [SpectrogramDiscriminator(window, config.channels) for window in config.windows]
        )

    def forward(self, pcm: Tensor) -> list[list[Tensor]]:
        return [member(pcm) for member in self.members]

    def loss(self, fake: Tensor, real: Tensor) -> Tensor:
        """What the discriminators minimise: real is 1, fake is 0."""
        both = self(torch.cat([real, fake]))
        terms = []
        for *_, verdict in both:
            yes, no = verdict.chunk(2)
            terms.append((1 - yes).square().mean() + no.square().mean())
        return torch.stack(terms).mean()

    def generator_terms(self, fake: Tensor, real: Tensor) -> dict[str, Tensor]:
        """`adversarial`: fake should be taken for 1; `features`: the layers should not tell them apart. Parameters
        get no gradient.
        """
        self.requires_grad_(False)
        adversarial, features = [], []
        with torch.no_grad():
            wanted = self(real)
        for ours, theirs in zip(self(fake), wanted):
            adversarial.append((1 - ours[-1]).square().mean())
            features += [F.l1_loss(a, b) / b.abs().mean().clamp(min=1e-4) for a, b in zip(ours[:-1], theirs[:-1])]
        self.requires_grad_(True)
        return {"adversarial": torch.stack(adversarial).mean(), "features": torch.stack(features).mean()}


class PeriodDiscriminator(nn.Module):
    """Sees every `period`-th sample in one row of a picture."""

    def __init__(self, period: int, channels: int):
        super().__init__()
        self.period = period
        widths = [1, channels, 2 * channels, 4 * channels, 8 * channels]
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, (5, 1), stride=(3, 1), padding=(2, 0)) for a, b in zip(widths, widths[1:])
        )
        self.verdict = nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0))

    def forward(self, pcm: Tensor) -> list[Tensor]:
        x = pcm[:, : pcm.shape[1] // self.period * self.period].view(len(pcm), 1, -1, self.period)
        return _through(self.layers, self.verdict, x)


class SpectrogramDiscriminator(nn.Module):
    """Sees the magnitude spectrogram at one resolution."""

    window: Tensor

    def __init__(self, window: int, channels: int):
        super().__init__()
        self.register_buffer("window", torch.hann_window(window))
        widths = [1, channels, channels, channels, channels]
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, (3, 9), stride=(1, 2), padding=(1, 4)) for a, b in zip(widths, widths[1:])
        )
        self.verdict = nn.Conv2d(channels, 1, 3, padding=1)

    def forward(self, pcm: Tensor) -> list[Tensor]:
        n = len(self.window)
        spectrum = torch.stft(pcm, n, n // 4, window=self.window, return_complex=True)
        magnitude = (spectrum.real.square() + spectrum.imag.square() + 1e-9).sqrt()
        return _through(self.layers, self.verdict, magnitude.transpose(1, 2)[:, None])


def _through(layers: nn.ModuleList, verdict: nn.Module, x: Tensor) -> list[Tensor]:
    features = []
    for layer in layers:
        x = F.leaky_relu(layer(x), SLOPE)
        features.append(x)
    return [*features, verdict(x)]
