"""Causal convolutions that stream: plain, strided and transposed. Layout is torch's `[B, C, T]`.

    plain      k = 4          . . . x x x x x     three zeros, or the last three inputs of the previous chunk
                              └─────┘ → y0
    strided    k = 4, s = 2   e e x x x x (x)     two edge values first; the last window is completed at the end
    transposed k = 2s         e x x x x           one edge frame first; every input gives s outputs

If a convolution starts from its edge value instead of zeros, the state holds a flag per row: whether it has started.

On a CPU a few outputs of a wide convolution are computed as a matrix product over windows. Convolution kernels
rearrange all weights at every call, which then takes two to four times as long as the arithmetic. On AMD processors
with AVX-512 this holds in float32 only for very few outputs. There and on Intel processors with AMX a `pack`ed model
(nn/linear.py) keeps its weights in the layout of the kernels. These are fastest if the channels of a step are
neighbours in memory, so inputs and states get that order, except in depthwise convolutions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechgpt2.nn.linear import AMX, AVX2, PROCESSOR, Kernel, packed
from speechgpt2.nn.native import kernels_for

FEW_OUTPUTS = 8
HAS_BLOCKED = PROCESSOR in ("avx512", "amx") and hasattr(torch.ops.mkldnn, "_reorder_convolution_weight")
STEPS = 12  # steps per row, as in a patch, that the layout is made for; another layout may be 30 times as slow
MANY_VALUES = 1 << 19  # for larger inputs oneDNN may be faster in a layout of its own choice


class EdgeTail(NamedTuple):
    """Carried state of a convolution that repeats its first input: `tail [B, C, n]` and `started [B]` (bool)."""

    tail: Tensor
    started: Tensor

    @classmethod
    def empty(cls, batch: int, channels: int, n: int, like: Tensor) -> EdgeTail:
        """Return the state before any input, with a tail of `n` inputs."""
        return cls(like.new_zeros(batch, channels, n), torch.zeros(batch, dtype=torch.bool, device=like.device))

    def prepend(self, x: Tensor) -> tuple[Tensor, EdgeTail]:
        """Put the tail before `x [B, C, T]`; return `[B, C, n + T]` and the next state."""
        tail = torch.where(self.started[:, None, None], self.tail.to(x.dtype), x[..., :1])
        x = torch.cat([tail, x], dim=-1)
        return x, EdgeTail(x[..., x.shape[-1] - tail.shape[-1] :].contiguous(), torch.ones_like(self.started))


class BlockedConv(NamedTuple):
    """A convolution of oneDNN with weights in its own memory layout."""

    packed: Tensor
    bias: Tensor | None
    stride: int
    dilation: int
    groups: int

    @classmethod
    def from_conv(cls, conv: nn.Conv1d, steps: int = STEPS) -> BlockedConv | None:
        """Pack `conv` for so many outputs at once; return None if torch's own kernel is faster."""
        weight = conv.weight.detach()
        if not HAS_BLOCKED or weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.bfloat16):
            return None
        (stride,), (dilation,), groups, kernel = conv.stride, conv.dilation, conv.groups, weight.shape[2]
        size = (1, conv.in_channels, 1, (steps - 1) * stride + (kernel - 1) * dilation + 1)
        blocked = torch.ops.mkldnn._reorder_convolution_weight(
            weight[:, :, None].contiguous(), [0, 0], [1, stride], [1, dilation], groups, size
        )
        return cls(blocked, None if conv.bias is None else conv.bias.detach(), stride, dilation, groups)

    def takes(self, x: Tensor) -> bool:
        """Return whether it can convolve `x` and is faster."""
        return x.dtype == self.packed.dtype and 0 < x.numel() <= MANY_VALUES and not torch.is_grad_enabled()

    def __call__(self, x: Tensor) -> Tensor:
        """Convolve `x [B, C, T]`."""
        stride, dilation = [1, self.stride], [1, self.dilation]
        y = torch.ops.mkldnn._convolution_pointwise(
            x[:, :, None], self.packed, self.bias, [0, 0], stride, dilation, self.groups, "none", [], ""
        )
        return y[:, :, 0]


class CausalConv1d(nn.Conv1d):
    """`[B, C, T] -> [B, D, T]`: output t sees inputs up to t, zeros before the first.

    A leaky ReLU of slope `slope` is applied to the inputs first.
    """

    packed: BlockedConv | None = None

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        rate: int = 1,
        slope: float = 1.0,
    ):
        super().__init__(c_in, c_out, kernel, dilation=dilation, groups=groups, bias=bias)
        self.past = (kernel - 1) * dilation  # inputs needed before the first
        self.rate = rate  # its steps in a step of 10 ms
        self.slope = slope
        self.is_depthwise = groups == c_in

    def pack(self, rows: int, half: bool) -> None:
        """Pack the weights (`nn.linear.pack`), which are few and are kept as well."""
        if not (AMX and self.is_depthwise):
            self.packed = self.packed or BlockedConv.from_conv(self, STEPS * self.rate)

    def init_state(self, batch: int) -> Tensor:
        """Return the state of `batch` rows before any input."""
        return self.weight.new_zeros(batch, self.in_channels, self.past)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Process one chunk `[B, C, T]` -> `[B, D, T]`."""
        state = self.init_state(x.shape[0]) if state is None else state
        time_major = self.packed is not None and not self.is_depthwise
        if self.past:
            x, state = extend(x, state, time_major, self.slope)
        elif self.slope != 1.0:
            x = F.leaky_relu(x, self.slope)
        if self.packed is not None and self.packed.takes(x):
            return self.packed(x), state
        return convolve(x, self.weight, self.bias, 1, self.dilation[0], self.groups), state


def extend(x: Tensor, tail: Tensor, time_major: bool, slope: float = 1.0) -> tuple[Tensor, Tensor]:
    """Put the last inputs `tail [B, C, n]` before the leaky ReLU of `x [B, C, T]`.

    Returns:
        Both together, `[B, C, n + T]`, and the next tail. If `time_major`, their memory is that of `[B, T, C]`.
    """
    axis, past = 1 if time_major else 2, tail.shape[2]
    kernels = kernels_for(x, x.shape[1], half=True) if time_major else None
    if kernels is not None:
        joined = kernels.extend(x.mT, tail.to(x.dtype).mT, slope)
    else:
        x = x if slope == 1.0 else F.leaky_relu(x, slope)
        joined = torch.cat((tail.to(x.dtype).mT, x.mT) if time_major else (tail.to(x.dtype), x), dim=axis)
    tail = joined.narrow(axis, joined.shape[axis] - past, past).clone(memory_format=torch.contiguous_format)
    return (joined.mT, tail.mT) if time_major else (joined, tail)


class Downsample(nn.Module):
    """`[B, C, T] -> [B, C, ⌈T/2⌉]`: kernel 4, stride 2, no bias, edges repeated.

    A chunk of odd length ends its stream: its last window is completed by repeating the last value.
    """

    packed: BlockedConv | None = None

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, 4, stride=2, bias=False)

    def pack(self, rows: int, half: bool) -> None:
        """Pack the weights (`nn.linear.pack`), which are few and are kept as well."""
        self.packed = self.packed or BlockedConv.from_conv(self.conv)

    def init_state(self, batch: int) -> EdgeTail:
        """Return the state of `batch` rows before any input."""
        return EdgeTail.empty(batch, self.conv.in_channels, 2, self.conv.weight)

    def forward(
        self, x: Tensor, state: EdgeTail | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, EdgeTail]:
        """Process one chunk.

        Args:
            x: `[B, C, T]`.
            state: The state before the chunk.
            lengths: Valid inputs of each row, `[B]`. After them the row's last valid input is repeated.

        Returns:
            `[B, C, ⌈T/2⌉]` and the next state.
        """
        if lengths is not None:
            index = torch.arange(x.shape[-1], device=x.device).minimum((lengths - 1).clamp(min=0)[:, None])
            x = x.gather(2, index[:, None].expand_as(x))
        if x.shape[-1] % 2:
            x = torch.cat([x, x[..., -1:]], dim=-1)
        x, state = (state or self.init_state(x.shape[0])).prepend(x)
        if self.packed is not None and self.packed.takes(x):
            return self.packed(x), state
        return convolve(x, self.conv.weight, None, 2), state


class CausalConvTranspose1d(nn.ConvTranspose1d):
    """`[B, C, T] -> [B, D, stride·T]`, kernel twice the stride: output block t mixes inputs t−1 and t."""

    packed: Kernel | None = None

    def __init__(self, c_in: int, c_out: int, stride: int, bias: bool = True):
        super().__init__(c_in, c_out, 2 * stride, stride=stride, bias=bias)

    def pack(self, rows: int, half: bool) -> None:
        """Pack the weights (`nn.linear.pack`), which are few and are kept as well."""
        self.packed = self.packed or packed(self.weight.flatten(1).t(), None, rows, half)

    def init_state(self, batch: int) -> EdgeTail:
        """Return the state of `batch` rows before any input."""
        return EdgeTail.empty(batch, self.in_channels, 1, self.weight)

    def forward(self, x: Tensor, state: EdgeTail | None = None) -> tuple[Tensor, EdgeTail]:  # type: ignore[override]
        """Process one chunk `[B, C, T]` -> `[B, D, stride·T]`."""
        x, state = (state or self.init_state(x.shape[0])).prepend(x)
        if self.packed is not None and self.packed.takes(x) and x[:, 0].numel() <= self.in_channels:
            return self._product(x, self.packed), state
        if _few(x, x.shape[-1], self.in_channels):
            return self._product(x), state
        stride = self.stride[0]
        return F.conv_transpose1d(x, self.weight, self.bias, stride=stride)[..., stride:-stride], state

    def _product(self, x: Tensor, kernel: Kernel | None = None) -> Tensor:
        """Compute the same as a matrix product: each input gives two halves, and overlapping halves are added."""
        batch, channels, steps = x.shape
        columns = x.transpose(1, 2).reshape(-1, channels)
        halves = columns @ self.weight.view(channels, -1) if kernel is None else kernel(columns)
        halves = halves.view(batch, steps, self.out_channels, 2, self.stride[0])
        y = (halves[:, :-1, :, 1] + halves[:, 1:, :, 0]).permute(0, 2, 1, 3).flatten(2)
        return y if self.bias is None else y + self.bias[:, None]


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 1, dilation: int = 1, groups: int = 1
) -> Tensor:
    """Compute `F.conv1d`, for few outputs as a matrix product: `x [B, C, T]`, `weight [D, C / groups, k]`."""
    width, kernel = weight.shape[1:]
    span = (kernel - 1) * dilation + 1
    steps = (x.shape[-1] - span) // stride + 1
    if width == 1 or not _few(x, steps, 2 * width):  # a depthwise convolution has few weights
        return F.conv1d(x, weight, bias, stride=stride, dilation=dilation, groups=groups)
    last = stride * (steps - 1) + 1
    windows = torch.stack([x[..., i : i + last : stride] for i in range(0, span, dilation)], dim=2)  # [B, C, k, T]
    columns = windows.unflatten(1, (groups, width)).permute(1, 2, 3, 0, 4).reshape(groups, width * kernel, -1)
    if columns.shape[2] < FEW_OUTPUTS:  # as in nn/linear.py, few columns are fastest one after the other
        columns = columns.transpose(1, 2).contiguous().transpose(1, 2)
    y = torch.bmm(weight.view(groups, -1, width * kernel), columns)  # [G, D/G, B·T]
    y = y.reshape(-1, x.shape[0], steps).transpose(0, 1)
    return y if bias is None else y + bias[:, None]


def _few(x: Tensor, steps: int, limit: int) -> bool:
    if not (AVX2 or AMX) and x.dtype == torch.float32:
        limit = min(limit, FEW_OUTPUTS - 1)
    return not x.is_cuda and x.shape[0] * steps <= limit
