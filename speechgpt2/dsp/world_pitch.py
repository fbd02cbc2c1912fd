"""Fundamental frequency by WORLD, one value every `F0_HOP` samples."""

from __future__ import annotations

from types import ModuleType

import numpy as np

from speechgpt2.extras import require
from speechgpt2.types import SAMPLE_RATE

F0_HOP = SAMPLE_RATE // 100  # samples between two values: 10 ms
_FLOOR, _CEILING = 60.0, 500.0  # Hz: from low male to high female voices


def track_pitch(pcm: np.ndarray) -> np.ndarray:
    """Return F0 in Hz, `[T]` float32 every 10 ms of `pcm [N]` at 24 kHz.

    Value i is centred at sample 240·i; 0 means unvoiced. WORLD's DIO refined by StoneMask (Morise et al. 2009, 2016),
    about 100 times faster than real time.

    Raises:
        MissingDependency: pyworld is not installed.
    """
    tools = world()
    signal = pcm.astype(np.float64)
    coarse, times = tools.dio(signal, SAMPLE_RATE, f0_floor=_FLOOR, f0_ceil=_CEILING, frame_period=10.0)
    return tools.stonemask(signal, coarse, times, SAMPLE_RATE).astype(np.float32)


def world() -> ModuleType:
    """Return pyworld, the bindings of WORLD. Raises `MissingDependency` if it is not installed."""
    return require("pyworld", "synthesis")
