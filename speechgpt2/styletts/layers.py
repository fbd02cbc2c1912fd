"""Layers over rows: a sequence is `[T, C]`, contiguous. Convolutions compute in the type of their weights.

An instance norm uses the moments of the whole sequence, so all of them are those of one utterance.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.2  # of the leaky ReLU between the convolutions of a residual block
EPSILON = 1e-5
BLOCK = 1 << 16  # values that are normalised and activated at once on a CPU, so that they stay in its cache

Activation = Callable[[Tensor], Tensor]  # may overwrite its argument


def _image(rows: Tensor) -> Tensor:
    """`[T, C]` as an image of one line `[1, C, 1, T]` with the same memory, channels last."""
    return rows.t()[None, :, None]


def _rows(image: Tensor) -> Tensor:
    """`[1, C, 1, T]` -> `[T, C]`."""
    return image[0, :, 0].t().contiguous()  # copies nothing if the channels are last


class Conv(nn.Conv2d):
    """A convolution of rows: `[T, C] -> [T', D]` in the type of the weights, which are `[D, C, 1, K]`.

    It is a convolution of an image of one line, because for one-dimensional ones the library copies both sides into
    another layout.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1, bias: bool = True
    ) -> None:
        padding = (kernel - stride + 1) // 2 * dilation
        super().__init__(inputs, outputs, (1, kernel), (1, stride), (0, padding), (1, dilation), bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve rows."""
        return _rows(super().forward(_image(x.to(self.weight.dtype))))


class Upsample(nn.ConvTranspose2d):
    """A transposed convolution of rows that gives `stride` rows for each: `[T, C] -> [stride · T, D]`."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1) -> None:
        padding = (kernel - stride + 1) // 2
        missing = stride - kernel + 2 * padding  # rows that padding takes off beyond the wanted length
        super().__init__(inputs, outputs, (1, kernel), (1, stride), (0, padding), (0, missing), groups)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Upsample rows."""
        return _rows(super().forward(_image(x.to(self.weight.dtype)), output_size))


class Snake(nn.Module):
    """The periodic activation x + sin²(αx) / α, with a frequency α per channel.

    Ziyin, Hartwig, Ueda: Neural Networks Fail to Learn Periodic Functions (2020), https://arxiv.org/abs/2006.08195.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Activate rows `[T, C]`, in place."""
        wave = (x * self.alpha).sin_()
        return x.addcmul_(wave.mul_(wave), self.alpha.reciprocal())


def leaky_relu(x: Tensor) -> Tensor:
    """Activate rows, in place."""
    return F.leaky_relu_(x, SLOPE)


class AdaptiveNorm(nn.Module):
    """Instance norm whose scale and shift are computed from the style (AdaIN), and the activation that follows it."""

    def __init__(self, style: int, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(style, 2 * channels)

    def forward(self, x: Tensor, style: Tensor, activation: Activation, dtype: torch.dtype) -> Tensor:
        """Normalise and activate.

        Args:
            x: `[T, C]`.
            style: `[S]`.
            activation: Applied to rows.
            dtype: The type of the result.

        Returns:
            `[T, C]`.
        """
        gain, bias = self.fc(style).chunk(2)
        mean, variance = torch.batch_norm_update_stats(_image(x), None, None, 1.0)
        scale = (1 + gain) * (variance.float() + EPSILON).rsqrt()
        shift = bias - mean.float() * scale
        result = torch.empty(x.shape, dtype=dtype, device=x.device)
        rows = BLOCK // x.shape[1] if x.device.type == "cpu" else len(x)
        for source, target in zip(x.split(rows), result.split(rows), strict=True):
            target.copy_(activation(torch.addcmul(shift, source, scale)))
        return result


class ResidualBlock(nn.Module):
    """Two convolutions, each behind an adaptive norm, beside a shortcut: `[T, C] -> [T, D]`, or `[2T, D]`."""

    def __init__(self, inputs: int, outputs: int, style: int, upsample: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = AdaptiveNorm(style, inputs), AdaptiveNorm(style, outputs)
        self.conv1, self.conv2 = Conv(inputs, outputs, 3), Conv(outputs, outputs, 3)
        self.pool = Upsample(inputs, inputs, 3, 2, groups=inputs) if upsample else None
        self.conv1x1 = Conv(inputs, outputs, 1, bias=False) if upsample or inputs != outputs else None

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Map rows `[T, C]` under a style `[S]`."""
        dtype = self.conv1.weight.dtype
        y = self.norm1(x, style, leaky_relu, dtype)
        if self.pool is not None:
            x, y = x.repeat_interleave(2, 0), self.pool(y)
        y = self.conv2(self.norm2(self.conv1(y), style, leaky_relu, dtype))
        shortcut = x if self.conv1x1 is None else self.conv1x1(x)
        return (y.float() + shortcut) / math.sqrt(2)


class BiLSTM(nn.LSTM):
    """A bidirectional LSTM over rows: `[T, C] -> [T, D]`, half of the outputs for each direction."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs // 2, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # the outputs only
        """Map rows."""
        return super().forward(x)[0]
