"""Near-duplicates by fingerprint: the same audio again with another gain, slightly cut, or through another codec.

After Haitsma and Kalker (2002): the signs of energy differences between neighbouring bands and times. Here the sounding
part of a clip is divided into a fixed number of slots, so that whole clips are compared.
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
PART = 1 << 16  # pairs per comparison
NEIGHBOURS = 64  # clips that a clip is compared with, in the order of one slot


def fingerprint(spectrum: np.ndarray) -> np.ndarray:
    """Return the fingerprint `[SLOTS − 1]` uint16 of power `[T, BINS]`."""
    bands = spectrum @ mel_bands(BANDS, 150.0, 3600.0)
    level = bands.sum(axis=1)
    loud = np.flatnonzero(level > max(level.max() * 10**-3.0, QUIETEST))
    if not len(loud):
        return np.zeros(SLOTS - 1, np.uint16)
    sounding = np.cumsum(np.pad(bands[loud[0] : loud[-1] + 1], ((1, 0), (0, 0))), axis=0, dtype=np.float64)
    edges = np.linspace(0, len(sounding) - 1, SLOTS + 1)
    whole = edges.astype(int)
    part = (edges - whole)[:, None]
    following = sounding[np.minimum(whole + 1, len(sounding) - 1)]
    sums = np.diff(sounding[whole] * (1 - part) + following * part, axis=0)
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
        """Return the clip with new fields."""
        bits = fingerprint(power_of(clip_audio))
        return replace(clip, audio=replace(clip.audio, fingerprint=bits.astype(">u2").tobytes().hex()))


@dataclass(frozen=True)
class DuplicatesConfig:
    """Options of `Duplicates`.

    Attributes:
        at_most: share of equal bits above which two clips are duplicates.
        stretch: by which their lengths may differ.
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
        matrix = np.frombuffer(prints, np.uint16).reshape(
            -1, SLOTS - 1
        )  # the byte order does not matter, since bits are counted
        like = self._like(matrix, np.frombuffer(seconds))
        ids: dict[int, str] = {first: "" for first, _ in like.values()}
        number = 0
        for clip in read():
            if not clip.kept or not clip.audio.fingerprint:
                yield clip
                continue
            if number in ids:
                ids[number] = clip.id
            yield self._decide(clip, like[number], ids) if number in like else clip
            number += 1

    def _decide(self, clip: Clip, like: tuple[int, float], ids: dict[int, str]) -> Clip:
        first, score = like
        decision = Decision(
            self.name, self.version, False, reason="duplicate", score=round(score, 4), threshold=self.config.at_most,
            detail=f"like {ids[first]}",
        )  # fmt: skip
        return replace(clip, decisions=(*clip.decisions, decision))

    def _like(self, prints: np.ndarray, seconds: np.ndarray) -> dict[int, tuple[int, float]]:
        """Return for each duplicate the earliest kept clip that it resembles, and their similarity.

        Candidates are equal in at least one slot: in the order of that slot they are neighbours.
        """
        pairs: dict[tuple[int, int], float] = {}
        for slot in range(prints.shape[1]):
            order = np.lexsort((seconds, prints[:, slot]))
            for step in range(1, min(NEIGHBOURS, len(order))):
                one, two = order[:-step], order[step:]
                near = (prints[one, slot] == prints[two, slot]) & (
                    seconds[two] - seconds[one] <= self.config.stretch * seconds[two] + 0.05
                )
                if not near.any():
                    break
                for part in np.split(np.flatnonzero(near), range(PART, int(near.sum()), PART)):
                    scores = similarity(prints[one[part]], prints[two[part]])
                    for i in np.flatnonzero(scores > self.config.at_most):
                        first, second = int(one[part[i]]), int(two[part[i]])
                        pairs[min(first, second), max(first, second)] = float(scores[i])
        like: dict[int, tuple[int, float]] = {}
        for (first, second), score in sorted(pairs.items(), key=lambda pair: (pair[0][1], pair[0][0])):
            if second not in like and first not in like:
                like[int(second)] = int(first), score
        return like
