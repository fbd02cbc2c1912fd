"""Measures of a codec's output against the original waveform.

Waveforms are `[N]` float at 24 kHz, pitch tracks `[F]` in Hz with 0 where unvoiced (`eval.boersma_pitch`). A metric
that is not defined for its input (no speech, no voiced frame) is nan, and means over clips leave nan out.

STOI and PESQ alone mislead for a codec with a 100 Hz frame grid: they give a buzz at that rate better scores than clean
speech. That is why there are the pitch measures and `hop_lock`.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import soxr
from numpy.typing import NDArray

from speechgpt2.extras import require
from speechgpt2.types import SAMPLE_RATE

Wave = NDArray[np.floating]
Track = NDArray[np.floating]

HOP_RATE = 100.0  # Hz; the rate of the decoder's frames, 240 samples each
STOI_FRAMES = 12_288  # samples at 24 kHz (0.5 s): STOI compares segments of 0.384 s of speech


def stoi(reference: Wave, degraded: Wave) -> float:
    """Short-time objective intelligibility, 0 to 1 (Taal et al. 2011); nan for less than half a second of audio."""
    if min(len(reference), len(degraded)) < STOI_FRAMES or not np.any(reference):
        return float("nan")
    reference, degraded = _same_length(reference, degraded)
    return float(require("pystoi", "eval").stoi(reference, degraded, SAMPLE_RATE))


def pesq(reference: Wave, degraded: Wave, band: Literal["wb", "nb"]) -> float:
    """Perceptual speech quality, about 1 to 4.6 (ITU-T P.862): wide band at 16 kHz or narrow band at 8 kHz.

    nan where the standard finds no utterance.
    """
    judge, rate = require("pesq", "eval"), 16_000 if band == "wb" else 8_000
    reference, degraded = _same_length(reference, degraded)
    try:
        return float(judge.pesq(rate, resample(reference, rate), resample(degraded, rate), band))
    except (judge.NoUtterancesError, judge.BufferTooShortError):
        return float("nan")


def gross_pitch_error(reference: Track, degraded: Track, tolerance: float = 0.2) -> float:
    """Share of the frames voiced in both tracks whose pitch is off by more than `tolerance` of the original's."""
    reference, degraded = _same_length(reference, degraded)
    both = (reference > 0) & (degraded > 0)
    gross = np.abs(degraded[both] - reference[both]) > tolerance * reference[both]
    return _share(gross)


def voicing_error(reference: Track, degraded: Track) -> float:
    """Share of the frames that are voiced in one track and not in the other."""
    reference, degraded = _same_length(reference, degraded)
    return _share((reference > 0) != (degraded > 0))


def hop_lock(reference: Track, degraded: Track) -> float:
    """How much the voice buzzes at the frame grid: share of frames whose pitch is locked to a multiple of 100 Hz.

    A frame counts if its pitch in the original is at least 5 % away from every multiple of 100 Hz. It is locked if its
    pitch in the copy is within 2 % of one. nan if the original has no frame that counts.
    """
    reference, degraded = _same_length(reference, degraded)
    counted = (reference > 0) & (_from_grid(reference) > 0.05)
    locked = (degraded > 0) & (_from_grid(degraded) < 0.02)
    return _share(locked[counted])


def _from_grid(track: Track) -> Track:
    """Distance of a pitch from the nearest multiple of the hop rate, as a share of that multiple."""
    nearest = np.maximum(np.round(track / HOP_RATE), 1.0) * HOP_RATE
    return np.abs(track - nearest) / nearest


def mel_cepstral_distortion(reference: Wave, degraded: Wave, ceiling: float = 4000.0) -> float:
    """Compute the mel-cepstral distortion in dB, without gain.

    It compares 24 cosine coefficients of 40 log-mel bands up to `ceiling` Hz, averaged over 25 ms windows within 40 dB
    of the original's loudest. The default ceiling is the band of telephone codecs. Compare these numbers only with each
    other: other analyses (mel-generalised cepstra, other bands) have other scales.
    """
    reference, degraded = _same_length(reference, degraded)
    original, copy = _log_mel(reference, ceiling), _log_mel(degraded, ceiling)
    loudness = np.logaddexp.reduce(original, axis=1)
    loud = loudness > loudness.max() - np.log(10 ** (40 / 10))
    basis = np.cos(np.pi / 40 * np.outer(np.arange(40) + 0.5, np.arange(1, 25))) * 2 / 40
    difference = (original[loud] - copy[loud]) / 2 @ basis  # the halves turn log power into log magnitude
    return float(np.mean(10 / np.log(10) * np.sqrt(2 * np.sum(difference**2, axis=1))))


def _log_mel(pcm: Wave, ceiling: float) -> NDArray[np.floating]:
    """Log-power mel bands [F, 40], 25 ms windows every 10 ms, floored at 60 dB below the loudest band."""
    size, hop = SAMPLE_RATE // 40, SAMPLE_RATE // 100
    padded = np.pad(np.asarray(pcm, dtype=np.float64), (0, max(0, size - len(pcm))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop] * np.hanning(size)
    power = np.abs(np.fft.rfft(frames, 1024)) ** 2 @ _mel_bands(ceiling)
    return np.log(np.maximum(power, 1e-6 * power.max() + 1e-12))


def _mel_bands(ceiling: float) -> NDArray[np.floating]:
    """Forty triangles [513, 40] from 60 Hz to `ceiling`, evenly spaced on the mel scale."""
    mel = np.linspace(np.log1p(60 / 700), np.log1p(ceiling / 700), 42)
    edges, bins = 700 * np.expm1(mel), np.linspace(0, SAMPLE_RATE / 2, 513)[:, None]
    rise = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rise, fall))


def perplexity(codes: NDArray[np.integer]) -> tuple[float, ...]:
    """The effective number of codes that each codebook uses: exp of the entropy of `codes [T, K]`, at most T."""
    result = []
    for column in np.asarray(codes).T:
        counts = np.unique(column, return_counts=True)[1]
        shares = counts / counts.sum()
        result.append(float(np.exp(-np.sum(shares * np.log(shares)))))
    return tuple(result)


def align(reference: Wave, degraded: Wave, delay: int = 0, search: float = 0.005) -> tuple[Wave, Wave]:
    """Align a copy with its original: remove `delay` samples and the best shift within ± `search` seconds.

    The search goes in steps of 1 ms and maximises the correlation of the log-mel spectrograms, because a parametric
    codec preserves no phase to correlate. Without it, the measures would punish shifts that nobody can hear.

    Returns:
        The original and the copy, of equal length.
    """
    step, span = SAMPLE_RATE // 1000, round(search * 1000)
    shifts = [delay + i * step for i in range(-span, span + 1)]
    if span:
        target = _log_mel(reference, 4000.0)
        fit = {shift: _correlation(target, _log_mel(_shifted(degraded, shift), 4000.0)) for shift in shifts}
        delay = max(shifts, key=lambda shift: (fit[shift], -abs(shift - delay)))
    return _same_length(reference, _shifted(degraded, delay))


def _shifted(pcm: Wave, shift: int) -> Wave:
    """Drop `shift` samples from the start, or put that many zeros there if negative."""
    return pcm[shift:] if shift >= 0 else np.concatenate([np.zeros(-shift, dtype=pcm.dtype), pcm])


def _correlation(a: NDArray, b: NDArray) -> float:
    """Correlation of two log-mel spectrograms [F, 40], each band without its mean; rounded, so that ties are exact."""
    a, b = _same_length(a, b)
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    scale = np.sqrt(np.sum(a * a) * np.sum(b * b))
    return round(float(np.sum(a * b) / scale), 6) if scale > 0 else 0.0


def resample(pcm: Wave, rate: int) -> NDArray[np.float32]:
    """Resample `pcm` [N] from 24 kHz to `rate`."""
    return soxr.resample(np.asarray(pcm, dtype=np.float32), SAMPLE_RATE, rate)


def _same_length(a: NDArray, b: NDArray) -> tuple[NDArray, NDArray]:
    length = min(len(a), len(b))
    return a[:length], b[:length]


def _share(flags: NDArray[np.bool_]) -> float:
    return float(np.mean(flags)) if len(flags) else float("nan")
