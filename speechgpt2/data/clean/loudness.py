"""Loudness by ITU-R BS.1770-4, and the gain that brings a clip to a target loudness."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np

from speechgpt2.data.pipeline.clip_audio import ClipAudio
from speechgpt2.data.pipeline.stage import Rejected, Stage
from speechgpt2.data.record import Clip
from speechgpt2.dsp.spectrum import fft, squared
from speechgpt2.types import SAMPLE_RATE

BLOCK, STEP = round(0.4 * SAMPLE_RATE), round(0.1 * SAMPLE_RATE)
BLOCKS_AT_ONCE = 64  # blocks per transform
SILENT, RELATIVE_GATE = -70.0, -10.0  # LUFS, LU: the absolute and the relative gate
# The two filters of the recommendation (the effect of the head, and a high-pass), given for 48 kHz.
_FILTERS = (
    ((1.53512485958697, -2.69169618940638, 1.19839281085285), (1.0, -1.69065929318241, 0.73248077421585)),
    ((1.0, -2.0, 1.0), (1.0, -1.99004745483398, 0.99007225036621)),
)


@cache
def _weights() -> np.ndarray:
    """Weights of a block's bins: the squared response of the filters, twice for the omitted half of the spectrum."""
    frequency = np.fft.rfftfreq(BLOCK, 1 / SAMPLE_RATE)
    z = np.exp(-2j * np.pi * frequency / 48_000)
    response = np.ones_like(z)
    for numerator, denominator in _FILTERS:
        response *= np.polyval(numerator[::-1], z) / np.polyval(denominator[::-1], z)
    weights = 2 * np.square(np.abs(response)) / np.square(BLOCK)
    weights[0] /= 2
    return weights


def loudness(pcm: np.ndarray) -> float:
    """Return the integrated loudness of `pcm [N]` (24 kHz, mono) in LUFS; −70 for silence."""
    if len(pcm) < BLOCK:
        pcm = np.pad(pcm, (0, BLOCK - len(pcm)))
    blocks = np.lib.stride_tricks.sliding_window_view(pcm, BLOCK)[::STEP]
    groups = np.split(blocks, range(BLOCKS_AT_ONCE, len(blocks), BLOCKS_AT_ONCE))
    power = np.concatenate([squared(fft.rfft(group)) @ _weights() for group in groups])
    gate = _power_of(SILENT)
    if not (power > gate).any():
        return SILENT
    gate = max(gate, power[power > gate].mean() * 10 ** (RELATIVE_GATE / 10))
    return -0.691 + 10 * float(np.log10(power[power > gate].mean()))


def _power_of(lufs: float) -> float:
    return 10 ** ((lufs + 0.691) / 10)


@dataclass(frozen=True)
class LoudnessConfig:
    """Options: `target` in LUFS; peaks stay below `peak` dBFS, so a clip with a high crest factor stays quieter."""

    kind: Literal["loudness"] = "loudness"
    target: float = -23.0
    peak: float = -1.0


class Loudness(Stage[LoudnessConfig]):
    """Measures the loudness, and sets the gain to the target."""

    version = 2

    def __call__(self, clip: Clip, clip_audio: ClipAudio) -> Clip:
        """Return the clip with its loudness and gain."""
        pcm = clip_audio.raw
        peak = float(np.abs(pcm).max(initial=0))
        measured = loudness(pcm)
        if measured <= SILENT or peak == 0:
            raise Rejected("silent", "is too quiet to be normalised", measured, SILENT)
        gain = min(self.config.target - measured, self.config.peak - 20 * float(np.log10(peak)))
        return replace(
            clip,
            audio=replace(clip.audio, gain=round(gain, 3)),
            quality=replace(clip.quality, loudness=round(measured, 2)),
        )
