"""Audio formats of the Realtime protocol as streams: PCM16 at 24, 16 or 8 kHz, G.711 µ-law and A-law at 8 kHz.

Both laws are ITU-T G.711: a byte holds sign, exponent and mantissa of a logarithmic level, and some of its bits are
inverted (µ-law: all; A-law: every other one). A level is the middle of an interval; encoding finds the interval.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from speechgpt2 import audio
from speechgpt2.types import SAMPLE_RATE

WireFormat = Literal["audio/pcm", "audio/pcm;rate=16000", "audio/pcm;rate=8000", "audio/pcmu", "audio/pcma"]
RATES = {"audio/pcm": 24_000, "audio/pcm;rate=16000": 16_000}  # samples per second; of all others 8,000
G711_RATE = 8_000
BYTES_PER_SECOND = {
    "audio/pcm": 2 * SAMPLE_RATE,
    "audio/pcm;rate=16000": 32_000,
    "audio/pcm;rate=8000": 16_000,
    "audio/pcmu": G711_RATE,
    "audio/pcma": G711_RATE,
}


class G711Law:
    """One law of G.711.

    Args:
        levels: The 128 positive levels, 16-bit scale.
        half_widths: Half the width of each level's interval.
        inverted: The bits that are sent inverted.
    """

    def __init__(self, levels: np.ndarray, half_widths: np.ndarray, inverted: int):
        self._edges = levels - half_widths  # lower edge of each interval
        self._inverted = inverted
        codes = np.arange(256) ^ inverted
        positive = (codes & 0x80 == 0) if inverted & 0x80 else (codes & 0x80 != 0)
        self._levels = np.where(positive, levels[codes & 0x7F], -levels[codes & 0x7F]) / audio.FULL_SCALE

    def decode(self, data: bytes) -> np.ndarray:
        """Decode bytes to `[N]` float32 at 8 kHz."""
        return self._levels[np.frombuffer(data, np.uint8)].astype(np.float32)

    def encode(self, pcm: np.ndarray) -> bytes:
        """Encode `pcm [N]` at 8 kHz to N bytes."""
        samples = np.clip(np.round(np.asarray(pcm, np.float64) * audio.FULL_SCALE), -32_768, 32_767)
        codes = np.searchsorted(self._edges, np.abs(samples), side="right") - 1
        negative = samples < 0
        sign = negative if self._inverted & 0x80 else ~negative
        return ((codes | sign << 7) ^ self._inverted).astype(np.uint8).tobytes()


def _mu_law() -> G711Law:
    exponent, mantissa = np.divmod(np.arange(128), 16)
    return G711Law(((8 * mantissa + 0x84) << exponent) - 0x84, 4 << exponent, inverted=0xFF)


def _a_law() -> G711Law:
    exponent, mantissa = np.divmod(np.arange(128), 16)
    shift = np.maximum(exponent - 1, 0)  # the two lowest segments have the same step
    return G711Law((16 * mantissa + np.where(exponent > 0, 0x108, 8)) << shift, 8 << shift, inverted=0x55)


LAWS = {"audio/pcmu": _mu_law(), "audio/pcma": _a_law()}


TAPS = 97  # 2 ms of delay in each direction; 60 dB attenuation above 4.45 kHz. A general resampler delays by 70 ms.
WINDOW = np.kaiser(TAPS, 5.65)


class LowPassFilter:
    """A streaming low-pass filter for resampling by `ratio`."""

    def __init__(self, ratio: int) -> None:
        self._taps = WINDOW * np.sinc((np.arange(TAPS) - TAPS // 2) / ratio) / ratio
        self._tail = np.zeros(TAPS - 1)

    def push(self, pcm: np.ndarray) -> np.ndarray:
        """Filter `[N]`; returns `[N]` float32."""
        if not len(pcm):
            return np.zeros(0, np.float32)
        past = np.concatenate([self._tail, pcm])
        self._tail = past[len(pcm) :]
        return np.convolve(past, self._taps, "valid").astype(np.float32)


class RationalResampler:
    """A streaming resampler by `up / down`: spread, filter, keep every `down`-th sample. Buffers nothing."""

    def __init__(self, up: int, down: int):
        self._up, self._down, self._filter = up, down, LowPassFilter(max(up, down))
        self._skip = 0  # samples before the next one to keep

    def push(self, pcm: np.ndarray) -> np.ndarray:
        """Resample the next `[N]`; returns about `[N · up / down]` float32."""
        spread = np.zeros(self._up * len(pcm))
        spread[:: self._up] = self._up * pcm
        kept = self._filter.push(spread)[self._skip :: self._down]
        self._skip = (self._skip - len(spread)) % self._down
        return kept


def _resampler(source: int, target: int) -> RationalResampler | None:
    """Return a resampler between two rates that are multiples of 8 kHz; None if they are equal."""
    common = math.gcd(source, target)
    return None if source == target else RationalResampler(target // common, source // common)


class WireDecoder:
    """Decodes a stream of bytes to samples at 24 kHz."""

    def __init__(self, format: WireFormat):
        self._law = LAWS.get(format)
        self._resampler = _resampler(RATES.get(format, G711_RATE), SAMPLE_RATE)

    def push(self, data: bytes) -> np.ndarray:
        """Decode the next bytes to `[N]` float32.

        Raises:
            UserError: The bytes end in the middle of a sample.
        """
        pcm = self._law.decode(data) if self._law else audio.from_pcm16(data)
        return self._resampler.push(pcm) if self._resampler else pcm


class WireEncoder:
    """Encodes a stream of samples at 24 kHz to bytes."""

    def __init__(self, format: WireFormat):
        self._law = LAWS.get(format)
        self._resampler = _resampler(SAMPLE_RATE, RATES.get(format, G711_RATE))

    def push(self, pcm: np.ndarray) -> bytes:
        """Encode the next `pcm [N]`."""
        pcm = self._resampler.push(pcm) if self._resampler else pcm
        return self._law.encode(pcm) if self._law else audio.to_pcm16(pcm)


def to_milliseconds(samples: int) -> int:
    """Convert 24 kHz samples to whole milliseconds, rounding down."""
    return samples * 1000 // SAMPLE_RATE


def to_samples(milliseconds: float) -> int:
    """Convert milliseconds to 24 kHz samples, rounding down."""
    return int(milliseconds * SAMPLE_RATE // 1000)
