"""Quality measures from the spectrum: SNR, bandwidth, clipping, overlapping voices, music.

Each measure is a function of samples or power, calibrated on planted faults (data/audit). Overlap is limited: the
harmonics of a second voice differ from those of music only in how long they are constant.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np

from speechgpt2.audio import resample
from speechgpt2.data.pipeline.clip_audio import ClipAudio
from speechgpt2.data.pipeline.spectra import power_of
from speechgpt2.data.pipeline.stage import Stage
from speechgpt2.data.record import Clip
from speechgpt2.dsp.spectrum import BIN_HERTZ, decibels, fft, power, squared
from speechgpt2.types import SAMPLE_RATE

BEST_SNR, WORST_SNR = 60.0, -10.0  # dB: the range of a 16-bit recording
OVERLAP_RATE, WINDOW = 8_000, 560  # Hz, samples (70 ms): frames for overlap
SHORT, LONG = 20, 115  # samples: periods of 400 … 70 Hz
ONE_VOICE = 0.25  # a greater residual means that one period does not explain a frame
TWO_VOICES = 0.3  # a smaller ratio to that residual means that two periods explain it
TONES, TONES_HOP = 2048, 480  # samples: frames that resolve tones
STANDING = 16  # frames (a third of a second) for which a tone must be constant


def snr(spectrum: np.ndarray) -> float:
    """Return the dB of speech above the background, from power `[T, BINS]`.

    Minimum statistics (Martin 2001) over the whole clip: the quietest tenth of a bin is background.
    """
    smooth = _smoothed(spectrum, 5)[:, 3:]
    noise = float(_quantile(smooth, 0.1).sum()) * 1.9  # the lowest tenth of noise lies near half its mean
    total = float(smooth.mean(axis=0).sum())
    ratio = max(total - noise, 1e-12) / max(noise, 1e-12)
    return float(np.clip(10 * np.log10(ratio), WORST_SNR, BEST_SNR))


def _smoothed(spectrum: np.ndarray, frames: int) -> np.ndarray:
    """Return means over `frames` frames `[T − frames + 1, F]`; of a shorter input one mean."""
    if len(spectrum) <= frames:
        return spectrum.mean(axis=0, keepdims=True)
    sums = np.cumsum(np.concatenate([np.zeros_like(spectrum[:1]), spectrum]), axis=0, dtype=np.float64)
    return (sums[frames:] - sums[:-frames]) / frames


def _quantile(values: np.ndarray, share: float) -> np.ndarray:
    """Return a quantile of each column of `[T, F]`, like `np.quantile`. Sorting float32 is faster than partitioning."""
    ordered = np.sort(values.astype(np.float32, copy=False), axis=0)
    below, fraction = divmod(share * (len(ordered) - 1), 1.0)
    low, high = ordered[int(below)], ordered[min(int(below) + 1, len(ordered) - 1)]
    return low + np.float32(fraction) * (high - low)


def bandwidth(spectrum: np.ndarray) -> float:
    """Return the highest frequency in Hz that comes within 60 dB of the loudest one, from power `[T, BINS]`."""
    loud = decibels(_quantile(spectrum, 0.98))
    audible = np.flatnonzero(loud > max(loud.max() - 60.0, -95.0))
    return float((audible[-1] + 0.5) * BIN_HERTZ) if len(audible) else 0.0


def clipping(pcm: np.ndarray) -> float:
    """Return the share of samples of `pcm [N]` within 5 % of the peak: hardly any in speech, many in clipped audio."""
    peak = float(np.abs(pcm).max(initial=0))
    return float((np.abs(pcm) > 0.95 * peak).mean()) if peak else 0.0


def overlap(pcm: np.ndarray) -> float:
    """Return the share of loud frames of `pcm [N]` that two periods explain and one does not.

    De Cheveigné's cascaded cancellation (1993): a delay by T and a subtraction cancel a voice of period T, two such
    steps cancel two voices. Whispered speech has no period and is not found. The residual follows from the
    autocorrelation, so all pairs of periods can be tried.
    """
    correlation = _correlations(pcm)
    if not len(correlation):
        return 0.0
    residual = (1 - correlation[:, SHORT:LONG]).min(axis=1)
    doubtful = correlation[residual > ONE_VOICE]
    first, second = _pairs()
    hits = 0
    for frames in np.array_split(doubtful, len(doubtful) // 64 + 1):
        crossed = (frames[:, first + second] + frames[:, second - first]) / 2
        of_two = (1 - frames[:, first] - frames[:, second] + crossed).min(axis=1, initial=1.0)
        of_one = (1 - frames[:, SHORT:LONG]).min(axis=1, initial=1.0)
        hits += int((of_two < TWO_VOICES * of_one).sum())
    return hits / len(correlation)


@cache
def _pairs() -> tuple[np.ndarray, np.ndarray]:
    """Pairs of periods, at least three samples apart, as lags `[pairs]`."""
    first, second = np.triu_indices(LONG - SHORT, 3)
    return first + SHORT, second + SHORT


def _correlations(pcm: np.ndarray) -> np.ndarray:
    """Normalised autocorrelation `[T, lags]` of the loud frames below 1.5 kHz, where harmonics are exact."""
    low = resample(pcm, SAMPLE_RATE, OVERLAP_RATE)
    if len(low) < WINDOW:
        return np.zeros((0, 2 * LONG))
    size = fft.next_fast_len(len(low), True)
    frequency = fft.rfftfreq(size, 1 / OVERLAP_RATE)
    band = ((frequency > 60) / np.sqrt(1 + (frequency / 1500) ** 8)).astype(np.float32)
    low = fft.irfft(fft.rfft(low, size) * band, size)[: len(low)]
    frames = np.lib.stride_tricks.sliding_window_view(low, WINDOW)[:: OVERLAP_RATE // 50]
    level = np.square(frames).mean(axis=1)
    frames = frames[level > level.max() * 10**-2.3]
    window = np.hanning(WINDOW).astype(np.float32)
    size = fft.next_fast_len(WINDOW + 2 * LONG, True)  # longer lags wrap around into the unused part
    products = fft.irfft(squared(fft.rfft(frames * window, size, axis=1)), size, axis=1)[:, : 2 * LONG]
    taper = fft.irfft(squared(fft.rfft(window, size)), size)[: 2 * LONG]
    return products / np.maximum(products[:, :1], 1e-12) / (taper / taper[0])


def music(pcm: np.ndarray) -> float:
    """Return the share of frames of `pcm [N]` with tones that are constant for a third of a second, as in no voice."""
    levels = decibels(power(pcm, TONES, TONES_HOP, slice(24, 430)))  # 280 Hz … 5 kHz
    if len(levels) < STANDING:
        return 0.0
    sums = np.cumsum(np.pad(levels, ((0, 0), (9, 8)), mode="edge"), axis=1)
    around = (sums[:, 17:] - sums[:, :-17]) / 17
    peak = (levels > around + 7) & (levels > levels.max() - 60)
    peak[:, 1:-1] &= (levels[:, 1:-1] >= levels[:, :-2]) & (levels[:, 1:-1] >= levels[:, 2:])
    runs = np.cumsum(np.pad(peak.astype(np.int16), ((1, 0), (0, 0))), axis=0, dtype=np.int32)
    # At each frame, the number of tones that are constant for the next STANDING frames.
    tones = (runs[STANDING:] - runs[:-STANDING] == STANDING).sum(axis=1)
    standing = np.convolve(tones >= 2, np.ones(STANDING))
    return float((standing > 0).mean())


@dataclass(frozen=True)
class QualityConfig:
    """Options of `MeasureQuality`: none."""

    kind: Literal["quality"] = "quality"


class MeasureQuality(Stage[QualityConfig]):
    """Sets all measures of this module."""

    version = 2

    def __call__(self, clip: Clip, clip_audio: ClipAudio) -> Clip:
        """Return the clip with its measures."""
        pcm, spectrum = clip_audio.pcm, power_of(clip_audio)
        quality = replace(
            clip.quality,
            snr=round(snr(spectrum), 2),
            bandwidth=round(bandwidth(spectrum)),
            clipping=round(clipping(pcm), 6),
            overlap=round(overlap(pcm), 4),
            music=round(music(pcm), 4),
        )
        return replace(clip, quality=quality)
