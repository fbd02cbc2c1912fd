"""Spectrograms of an original and its reconstructions, one under the other.

A buzz at the frame grid, lost harmonics and smeared onsets are visible here before any measure shows them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speechgpt2.eval import metrics
from speechgpt2.eval.codec_systems import CodecSystem
from speechgpt2.extras import require
from speechgpt2.types import SAMPLE_RATE

CEILING = 8000  # Hz shown


def save_spectrograms(path: Path, pcm: NDArray[np.float32], systems: Sequence[CodecSystem]) -> None:
    """Write a PNG: `pcm [N]` at 24 kHz, then its reconstruction by each codec, aligned."""
    require("matplotlib", "eval").use("Agg")
    plots = require("matplotlib.pyplot", "eval")
    waves = {"original": pcm}
    for system in systems:
        waves[system.name] = metrics.align(pcm, system.reconstruct(pcm).pcm, system.delay)[1]
    figure, axes = plots.subplots(len(waves), 1, figsize=(10, 2.2 * len(waves)), sharex=True, squeeze=False)
    for axis, (name, wave) in zip(axes[:, 0], waves.items(), strict=True):
        image = _decibels(wave)
        extent = (0, len(wave) / SAMPLE_RATE, 0, CEILING / 1000)
        axis.imshow(image.T, origin="lower", aspect="auto", extent=extent, cmap="magma", vmin=-75, vmax=0)
        axis.set_ylabel("kHz")
        axis.set_title(name, loc="left", fontsize=9)
    axes[-1, 0].set_xlabel("seconds")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plots.close(figure)


def _decibels(pcm: NDArray[np.floating]) -> NDArray[np.floating]:
    """Power [F, bins] in dB below the loudest, from 43 ms windows every 5 ms, which resolve harmonics 100 Hz apart."""
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(pcm, 512), 1024)[::120] * np.hanning(1024)
    power = np.abs(np.fft.rfft(frames))[:, : CEILING * 1024 // SAMPLE_RATE] ** 2
    return 10 * np.log10(np.maximum(power / max(power.max(), 1e-12), 1e-9))
