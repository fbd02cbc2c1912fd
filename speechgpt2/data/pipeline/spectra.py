"""Spectra of a clip, computed once for all stages that need them."""

from __future__ import annotations

import numpy as np

from speechgpt2.data.pipeline.clip_audio import ClipAudio
from speechgpt2.dsp.activity import energy_activity_of_power
from speechgpt2.dsp.spectrum import power


def power_of(clip_audio: ClipAudio) -> np.ndarray:
    """Return the clip's power per frame and bin `[T, BINS]`, with its gain (`dsp.spectrum.power`)."""
    return clip_audio.cached("power", power, degree=2)


def activity_of(clip_audio: ClipAudio) -> np.ndarray:
    """Return how likely speech is in every 10 ms of the clip, `[T]` in 0…1 (`dsp.activity.energy_activity`)."""
    return energy_activity_of_power(power_of(clip_audio), len(clip_audio.raw))
