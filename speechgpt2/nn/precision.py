"""Which precision is fast on a device, and which exists: Apple's GPUs (MPS) have no float64.

Only this module may form float64 on a device; tests/nn/test_precision.py holds the others to it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TURN = 2.0**64  # fixed-point units of a turn


def has_float64(device: torch.device) -> bool:
    """Return whether the device computes in float64."""
    return device.type != "mps"


def widest_float(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on a device without it."""
    return torch.float64 if has_float64(device) else torch.float32


def rotary_frequencies(dim: int, theta: float, device: torch.device) -> Tensor:
    """Return the rotary frequencies of heads of `dim` in radians per position, `[dim / 2]`.

    They are float64, and on the CPU if the device has no float64.
    """
    place = device if has_float64(device) else torch.device("cpu")
    return theta ** (-torch.arange(0, dim, 2, device=place, dtype=torch.float64) / dim)


def rotary_angle(position: Tensor, frequency: Tensor) -> Tensor:
    """Return `position · frequency` in radians, exact enough for a stream of days; float32 alone loses .01 in an hour.

    Args:
        position: `[...]` int64.
        frequency: Those of `rotary_frequencies`, `[D]`, below π.

    Returns:
        `[..., D]`, float64; on a device without it float32, less whole turns. There positions are multiplied by
        fixed-point numbers, whose overflow drops whole turns.
    """
    if has_float64(position.device):
        return position[..., None].double() * frequency
    turns = position[..., None] * _fixed_point(frequency).to(position.device)
    return turns.float() * (2 * math.pi / TURN)


def _fixed_point(frequency: Tensor) -> Tensor:
    """Return frequencies on the CPU in units of 2⁻⁶⁴ turns (int64)."""
    return (frequency * (TURN / (2 * math.pi))).round().to(torch.int64)


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether the hardware computes in bfloat16. Emulation is many times slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    flags = torch.backends.cpu.get_cpu_capability()
    has = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return "AMX" in flags or bool(has()) or bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())
