"""Sound as the wire carries it: PCM16 at 24 kHz, and G.711 µ-law and A-law at 8 kHz, in streams.

Both laws are ITU-T G.711: a byte is sign, exponent and mantissa of a logarithmic level, its bits inverted (µ-law: all
of them; A-law: every other one). A level stands in the middle of an interval; encoding finds the interval.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from speechgpt2 import audio
from speechgpt2.types import SAMPLE_RATE

Format = Literal["audio/pcm", "audio/pcmu", "audio/pcma"]
TELEPHONE_RATE = 8_000  # samples per second of both laws
BYTES_PER_SECOND = {"audio/pcm": 2 * SAMPLE_RATE, "audio/pcmu": TELEPHONE_RATE, "audio/pcma": TELEPHONE_RATE}


class Law:
    """One of G.711's laws, as tables over its 128 positive levels (16-bit scale)."""

    def __init__(self, levels: np.ndarray, half_widths: np.ndarray, inverted: int):
        self._edges = levels - half_widths  # where each interval begins
        self._inverted = inverted  # the bits that are sent as their opposite; the sign bit among them or not
        codes = np.arange(256) ^ inverted
        positive = (codes & 0x80 == 0) if inverted & 0x80 else (codes & 0x80 != 0)
        self._levels = np.where(positive, levels[codes & 0x7F], -levels[codes & 0x7F]) / audio.FULL_SCALE

    def decode(self, data: bytes) -> np.ndarray:
        """Bytes -> `[N]` float32 at 8 kHz."""
        return self._levels[np.frombuffer(data, np.uint8)].astype(np.float32)

    def encode(self, pcm: np.ndarray) -> bytes:
        """`pcm [N]` at 8 kHz -> N bytes."""
        samples = np.clip(np.round(np.asarray(pcm, np.float64) * audio.FULL_SCALE), -32_768, 32_767)
        codes = np.searchsorted(self._edges, np.abs(samples), side="right") - 1
        negative = samples < 0
        sign = negative if self._inverted & 0x80 else ~negative
        return ((codes | sign << 7) ^ self._inverted).astype(np.uint8).tobytes()


def _mu_law() -> Law:
    exponent, mantissa = np.divmod(np.arange(128), 16)
    return Law(((8 * mantissa + 0x84) << exponent) - 0x84, 4 << exponent, inverted=0xFF)


def _a_law() -> Law:
    exponent, mantissa = np.divmod(np.arange(128), 16)
    shift = np.maximum(exponent - 1, 0)  # the two lowest segments have one step
    return Law((16 * mantissa + np.where(exponent > 0, 0x108, 8)) << shift, 8 << shift, inverted=0x55)


LAWS = {"audio/pcmu": _mu_law(), "audio/pcma": _a_law()}


RATIO = SAMPLE_RATE // TELEPHONE_RATE
TAPS = 97  # at 24 kHz 2 ms of delay each way; 60 dB down above 4.45 kHz. A general resampler would hold back 70 ms.
WINDOW = np.kaiser(TAPS, 5.65)


class Filter:
    """The low pass at a `ratio`-th of the band, in a stream."""

    def __init__(self, ratio: int = RATIO) -> None:
        self._taps = WINDOW * np.sinc((np.arange(TAPS) - TAPS // 2) / ratio) / ratio
        self._tail = np.zeros(TAPS - 1)

    def push(self, pcm: np.ndarray) -> np.ndarray:
        """`[N]` -> `[N]` float32."""
        if not len(pcm):
            return np.zeros(0, np.float32)
        past = np.concatenate([self._tail, pcm])
        self._tail = past[len(pcm) :]
        return np.convolve(past, self._taps, "valid").astype(np.float32)


class Upsampler:
    """8 kHz -> 24 kHz, or by another ratio, in a stream, without holding anything back."""

    def __init__(self, ratio: int = RATIO) -> None:
        self._ratio, self._filter = ratio, Filter(ratio)

    def push(self, pcm: np.ndarray) -> np.ndarray:
        """`[N]` -> `[ratio·N]` float32."""
        spread = np.zeros(self._ratio * len(pcm))
        spread[:: self._ratio] = self._ratio * pcm
        return self._filter.push(spread)


class Downsampler:
    """24 kHz -> 8 kHz in a stream."""

    def __init__(self) -> None:
        self._filter = Filter()
        self._skip = 0  # samples before the next one that is kept

    def push(self, pcm: np.ndarray) -> np.ndarray:
        """`[N]` -> a third of it, float32."""
        kept = self._filter.push(pcm)[self._skip :: RATIO]
        self._skip = (self._skip - len(pcm)) % RATIO
        return kept


class Decoder:
    """A stream of bytes from the wire -> `pcm` at 24 kHz."""

    def __init__(self, format: Format):
        self._law, self._upsampler = LAWS.get(format), Upsampler()

    def push(self, data: bytes) -> np.ndarray:
        """The next bytes -> `[N]` float32. Errors: `UserError` for half a sample."""
        return self._upsampler.push(self._law.decode(data)) if self._law else audio.from_pcm16(data)


class Encoder:
    """A stream of `pcm` at 24 kHz -> bytes for the wire."""

    def __init__(self, format: Format):
        self._law, self._downsampler = LAWS.get(format), Downsampler()

    def push(self, pcm: np.ndarray) -> bytes:
        """The next `pcm [N]` -> bytes."""
        return self._law.encode(self._downsampler.push(pcm)) if self._law else audio.to_pcm16(pcm)


def milliseconds(samples: int) -> int:
    """A number of 24 kHz samples in whole milliseconds."""
    return samples * 1000 // SAMPLE_RATE


def samples(milliseconds: float) -> int:
    """Milliseconds as a number of 24 kHz samples."""
    return int(milliseconds * SAMPLE_RATE // 1000)
