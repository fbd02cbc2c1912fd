"""Crops of speech with labels: what the codec's trainer learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Crops:
    """A batch of crops.

    `pcm [B, 960·T]` (float32) is clean, `augmented` is the same with room acoustics and noise. `f0 [B, 4·T]` is in Hz,
    0 where unvoiced. `phones [B, T]` are labels, −1 where unknown. `texts` holds what is said in each crop, None where
    that is unknown.
    """

    pcm: Tensor
    augmented: Tensor
    f0: Tensor
    phones: Tensor
    texts: tuple[str | None, ...] = ()

    @classmethod
    def joined(cls, parts: Sequence[Crops]) -> Crops:
        """Return the rows of all `parts`."""
        pcm, augmented, f0, phones = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("pcm", "augmented", "f0", "phones")
        )
        return cls(pcm, augmented, f0, phones, tuple(text for part in parts for text in part.texts))

    def to(self, device: torch.device) -> Crops:
        """Return the crops on a device."""
        pcm, augmented, f0, phones = (t.to(device) for t in (self.pcm, self.augmented, self.f0, self.phones))
        return replace(self, pcm=pcm, augmented=augmented, f0=f0, phones=phones)


class CropSource(Protocol):
    """Source of crops, see `speechgpt2.corpus.codec_dataset`. `phones` are the names of the phone labels."""

    phones: tuple[str, ...]

    def crops(self, random: np.random.Generator, batch: int, frames: int) -> Crops:
        """Return `batch` crops of `frames` frames."""
        ...
