"""From frames to samples: a decoder at 40 and 80 Hz, and an iSTFT generator with a harmonic source.

The generator is that of iSTFTNet (Kaneko et al. 2022, https://arxiv.org/abs/2203.02395) under a style. Its source is a
sum of harmonics of the pitch (Wang, Takaki, Yamagishi: Neural source-filter models, 2019). Kokoro's ONNX file has no
noise in the source, so speech depends on its arguments only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechgpt2.nn.precision import widest_float
from speechgpt2.styletts.layers import AdaptiveNorm, Conv, ResidualBlock, Snake, Upsample

VOICED = 10.0  # Hz: below this a frame is unvoiced
SINE_LEVEL = 0.1
EARLY_SLOPE, LAST_SLOPE = 0.1, 0.01  # of the leaky ReLUs before upsampling and before the spectrum


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of the decoder.

    Attributes:
        size: Channels of the encoded symbols; the frames have twice as many.
        skip: Channels of the encoded symbols that every block sees again.
        channels: Channels of the generator after each upsampling.
        strides: Factors of the upsampling.
        kernels: Kernels of the residual blocks that are averaged after each upsampling.
        source_kernels: Kernels of the residual blocks of the source.
        harmonics: Sines of the source.
        window: Samples of the spectra's window.
        hop: Samples between spectra.
        sample_rate: In Hz.
    """

    size: int = 512
    skip: int = 64
    channels: tuple[int, ...] = (256, 128)
    strides: tuple[int, ...] = (10, 6)
    kernels: tuple[int, ...] = (3, 7, 11)
    source_kernels: tuple[int, ...] = (7, 11)
    harmonics: int = 9
    window: int = 20
    hop: int = 5
    sample_rate: int = 24_000

    @property
    def contour_step(self) -> int:
        """Samples of a value of pitch."""
        return math.prod(self.strides) * self.hop

    @property
    def bins(self) -> int:
        """Frequencies of a spectrum."""
        return self.window // 2 + 1


class HarmonicSource(nn.Module):
    """Sines at the multiples of the pitch, mixed to one signal."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.step, self.sample_rate = config.contour_step, config.sample_rate
        self.linear = nn.Linear(config.harmonics, 1)

    def forward(self, pitch: Tensor) -> Tensor:
        """Pitch in Hz `[T]` -> samples `[step · T]`."""
        numbers = torch.arange(1, self.linear.in_features + 1, device=pitch.device)
        turns = pitch[:, None] * numbers / self.sample_rate % 1  # per sample, at the middle of each value's step
        wide = widest_float(pitch.device)  # the phase grows with the text: float32 is too coarse
        phase = turns.to(wide).cumsum(0) * (2 * math.pi * self.step)
        phase = F.interpolate(phase.t()[None], scale_factor=float(self.step), mode="linear")[0].t()
        voiced = (pitch > VOICED).repeat_interleave(self.step)[:, None]
        return self.linear(phase.sin().float() * SINE_LEVEL * voiced).tanh()[:, 0]


class SnakeBlock(nn.Module):
    """Three pairs of convolutions, dilated and plain, each behind an adaptive norm and a snake: `[T, C] -> [T, C]`."""

    def __init__(self, channels: int, kernel: int, style: int, dilations: tuple[int, ...] = (1, 3, 5)) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(Conv(channels, channels, kernel, dilation=dilation) for dilation in dilations)
        self.convs2 = nn.ModuleList(Conv(channels, channels, kernel) for _ in dilations)
        self.adain1, self.adain2 = (nn.ModuleList(AdaptiveNorm(style, channels) for _ in dilations) for _ in range(2))
        self.alpha1, self.alpha2 = (nn.ModuleList(Snake(channels) for _ in dilations) for _ in range(2))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Map float32 rows under a style `[S]`."""
        first = (self.adain1, self.alpha1, self.convs1)
        second = (self.adain2, self.alpha2, self.convs2)
        inputs = x
        for stages in zip(zip(*first, strict=True), zip(*second, strict=True), strict=True):
            y = x
            for norm, snake, conv in stages:
                y = conv(norm(y, style, snake, conv.weight.dtype))
            x = x + y if inputs is x else x.add_(y)
        return x


class Generator(nn.Module):
    """Features `[T, size]` and pitch in Hz `[T]` -> samples `[contour_step · T]`."""

    def __init__(self, config: DecoderConfig, style: int) -> None:
        super().__init__()
        self.window: Tensor
        self.hop, self.bins, self.parallel = config.hop, config.bins, len(config.kernels)
        self.m_source = HarmonicSource(config)
        self.register_buffer("window", torch.hann_window(config.window), persistent=False)
        widths = (config.size, *config.channels)
        self.ups = nn.ModuleList(
            Upsample(inputs, outputs, 2 * stride, stride)
            for inputs, outputs, stride in zip(widths, config.channels, config.strides, strict=False)
        )
        self.noise_convs, self.noise_res, self.resblocks = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for i, (channels, kernel) in enumerate(zip(config.channels, config.source_kernels, strict=True)):
            stride = math.prod(config.strides[i + 1 :])
            self.noise_convs.append(Conv(2 * self.bins, channels, 2 * stride if stride > 1 else 1, stride))
            self.noise_res.append(SnakeBlock(channels, kernel, style))
            self.resblocks += [SnakeBlock(channels, each, style) for each in config.kernels]
        self.conv_post = Conv(config.channels[-1], 2 * self.bins, 7)

    def forward(self, x: Tensor, style: Tensor, pitch: Tensor) -> Tensor:
        """Generate samples under a style `[S]`."""
        source = self._spectrum(self.m_source(pitch))
        for i, upsample in enumerate(self.ups):
            x = upsample(F.leaky_relu(x, EARLY_SLOPE)).float()
            if i == len(self.ups) - 1:
                x = torch.cat([x[1:2], x])  # there is a spectrum at both ends: one more than steps
            x = x + self.noise_res[i](self.noise_convs[i](source).float(), style)
            first, *others = self.resblocks[i * self.parallel : (i + 1) * self.parallel]
            total = first(x, style)
            for block in others:
                total += block(x, style)
            x = total / self.parallel
        spectrum = self.conv_post(F.leaky_relu(x, LAST_SLOPE)).float()
        return self._samples(spectrum[:, : self.bins].exp(), spectrum[:, self.bins :].sin())

    def _spectrum(self, samples: Tensor) -> Tensor:
        """Magnitudes and phases `[T, 2 · bins]` of samples."""
        size = len(self.window)
        spectrum = torch.stft(samples, size, self.hop, window=self.window, return_complex=True, pad_mode="reflect")
        return torch.cat([spectrum.abs(), spectrum.angle()]).t().contiguous()

    def _samples(self, magnitude: Tensor, phase: Tensor) -> Tensor:
        """Return the samples of magnitudes and phases `[T, bins]`, as loud as those of the ONNX file.

        The file does not divide the overlapping windows by the sum of their squares.
        """
        samples = torch.istft(torch.polar(magnitude, phase).t(), len(self.window), self.hop, window=self.window)
        return samples * (self.window.square().sum() / self.hop)


class StyleDecoder(nn.Module):
    """Encoded symbols at each frame `[T, C]`, pitch and energy `[2T]` -> samples."""

    def __init__(self, config: DecoderConfig, style: int, blocks: int = 4) -> None:
        super().__init__()
        size = 2 * config.size
        self.F0_conv, self.N_conv = Conv(1, 1, 3, 2), Conv(1, 1, 3, 2)
        self.asr_res = Conv(config.size, config.skip, 1)
        self.encode = ResidualBlock(config.size + 2, size, style)
        self.decode = nn.ModuleList(
            ResidualBlock(size + config.skip + 2, config.size if last else size, style, upsample=last)
            for last in [False] * (blocks - 1) + [True]
        )
        self.generator = Generator(config, style)

    def forward(self, x: Tensor, pitch: Tensor, energy: Tensor, style: Tensor) -> Tensor:
        """Generate samples under a style `[S]`."""
        contours = [self.F0_conv(pitch[:, None]).float(), self.N_conv(energy[:, None]).float()]
        skip = [self.asr_res(x).float(), *contours]
        x = self.encode(torch.cat([x, *contours], 1), style)
        for block in self.decode:
            x = block(torch.cat([x, *skip], 1), style)
        return self.generator(x, style, pitch)
