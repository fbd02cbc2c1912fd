"""Near-duplicates by fingerprint: the same audio again with another gain, slightly cut, or through another codec.

The fingerprint is that of Haitsma and Kalker (2002): the signs of energy differences between neighbouring bands and
times. Here the clip, without silence at its ends, is divided into a fixed number of slots, so whole clips are compared.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from speechgpt2.data.pipeline.clip_audio import ClipAudio
from speechgpt2.data.pipeline.global_steps import GlobalStep, ReadClips
from speechgpt2.data.pipeline.spectra import power_of
from speechgpt2.data.pipeline.stage import Stage
from speechgpt2.data.record import Clip, Decision
from speechgpt2.dsp.spectrum import QUIETEST, decibels, mel_bands

SLOTS, BANDS = 24, 17  # 23 differences in time × 16 between bands = 368 bits
_BITS = np.unpackbits(np.arange(1 << 16, dtype=np.uint16).view(np.uint8).reshape(-1, 2), axis=1).sum(1, dtype=np.uint8)
PAIRS_AT_ONCE = 1 << 16  # pairs of clips that are compared in one array
NEIGHBOURS = 64  # clips that a clip is compared with, in the order of one slot


def fingerprint(spectrum: np.ndarray) -> np.ndarray:
    """Return the fingerprint `[SLOTS − 1]` uint16 of power `[T, BINS]`."""
    bands = spectrum @ mel_bands(BANDS, 150.0, 3600.0)
    level = bands.sum(axis=1)
    loud = np.flatnonzero(level > max(level.max() * 10**-3.0, QUIETEST))
    if not len(loud):
        return np.zeros(SLOTS - 1, np.uint16)
    running_sum = np.cumsum(np.pad(bands[loud[0] : loud[-1] + 1], ((1, 0), (0, 0))), axis=0, dtype=np.float64)
    edges = np.linspace(0, len(running_sum) - 1, SLOTS + 1)
    index = edges.astype(int)
    fraction = (edges - index)[:, None]
    following = running_sum[np.minimum(index + 1, len(running_sum) - 1)]
    sums = np.diff(running_sum[index] * (1 - fraction) + following * fraction, axis=0)
    bits = np.diff(np.diff(decibels(sums), axis=1), axis=0) > 0
    return np.packbits(bits, axis=1).view(">u2")[:, 0].astype(np.uint16)


def similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the share of equal bits of fingerprints `[…, SLOTS − 1]`; about 0.5 for unrelated ones."""
    return 1 - _BITS[a ^ b].sum(axis=-1, dtype=np.int32) / (16 * (SLOTS - 1))


@dataclass(frozen=True)
class FingerprintConfig:
    """Options of `Fingerprint`: none."""

    kind: Literal["fingerprint"] = "fingerprint"


class Fingerprint(Stage[FingerprintConfig]):
    """Sets `audio.fingerprint`."""

    version = 2

    def __call__(self, clip: Clip, clip_audio: ClipAudio) -> Clip:
        """Return the clip with its fingerprint."""
        bits = fingerprint(power_of(clip_audio))
        return replace(clip, audio=replace(clip.audio, fingerprint=bits.astype(">u2").tobytes().hex()))


@dataclass(frozen=True)
class DuplicatesConfig:
    """Options of `Duplicates`.

    Attributes:
        at_most: share of equal bits above which two clips are duplicates.
        stretch: share by which their lengths may differ.
    """

    kind: Literal["duplicates"] = "duplicates"
    at_most: float = 0.72
    stretch: float = 0.06


class Duplicates(GlobalStep[DuplicatesConfig]):
    """Rejects a clip that resembles an earlier kept one; the first of equal clips stays."""

    version = 1

    def __call__(self, read: ReadClips) -> Iterator[Clip]:
        """Yield the clips with new fields or decisions."""
        prints, seconds = bytearray(), array("d")
        for clip in read():
            if clip.kept and clip.audio.fingerprint:
                prints += bytes.fromhex(clip.audio.fingerprint)
                seconds.append(clip.audio.duration)
        # The byte order does not matter, since bits are counted.
        matrix = np.frombuffer(prints, np.uint16).reshape(-1, SLOTS - 1)
        originals = self._find_originals(matrix, np.frombuffer(seconds))
        ids: dict[int, str] = {first: "" for first, _ in originals.values()}
        number = 0
        for clip in read():
            if not clip.kept or not clip.audio.fingerprint:
                yield clip
                continue
            if number in ids:
                ids[number] = clip.id
            yield self._reject(clip, originals[number], ids) if number in originals else clip
            number += 1

    def _reject(self, clip: Clip, original: tuple[int, float], ids: dict[int, str]) -> Clip:
        first, score = original
        decision = Decision(
            self.name, self.version, False, reason="duplicate", score=round(score, 4), threshold=self.config.at_most,
            detail=f"like {ids[first]}",
        )  # fmt: skip
        return replace(clip, decisions=(*clip.decisions, decision))

    def _find_originals(self, prints: np.ndarray, seconds: np.ndarray) -> dict[int, tuple[int, float]]:
        """Return for the index of each duplicate the earliest kept clip that it resembles, and their similarity.

        Only clips that are equal in at least one slot are compared: they are neighbours when sorted by that slot.
        """
        pairs: dict[tuple[int, int], float] = {}
        for slot in range(prints.shape[1]):
            order = np.lexsort((seconds, prints[:, slot]))
            for step in range(1, min(NEIGHBOURS, len(order))):
                shorter, longer = order[:-step], order[step:]
                candidates = (prints[shorter, slot] == prints[longer, slot]) & (
                    seconds[longer] - seconds[shorter] <= self.config.stretch * seconds[longer] + 0.05
                )
                if not candidates.any():
                    break
                groups = range(PAIRS_AT_ONCE, int(candidates.sum()), PAIRS_AT_ONCE)
                for group in np.split(np.flatnonzero(candidates), groups):
                    scores = similarity(prints[shorter[group]], prints[longer[group]])
                    for i in np.flatnonzero(scores > self.config.at_most):
                        first, second = int(shorter[group[i]]), int(longer[group[i]])
                        pairs[min(first, second), max(first, second)] = float(scores[i])
        originals: dict[int, tuple[int, float]] = {}
        for (first, second), score in sorted(pairs.items(), key=lambda pair: (pair[0][1], pair[0][0])):
            if second not in originals and first not in originals:
                originals[int(second)] = int(first), score
        return originals
