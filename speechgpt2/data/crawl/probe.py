"""Decodes a file once and completely: does it hold audio, how much, and what is its fingerprint?"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speechgpt2.data.crawl.item_errors import ItemRejected
from speechgpt2.data.decoding import Undecodable, open_audio


@dataclass(frozen=True)
class ProbedAudio:
    """The content of a file.

    Attributes:
        format: the container, as libsndfile or ffmpeg names it.
        ending: the file name's ending that fits the content.
        fingerprint: hash of the decoded 16-bit samples, equal for equal audio in any lossless format.
    """

    format: str
    ending: str
    sample_rate: int
    channels: int
    samples: int
    fingerprint: str

    @property
    def seconds(self) -> float:
        """Duration of the audio."""
        return self.samples / self.sample_rate


def probe(path: Path, max_hours: float) -> ProbedAudio:
    """Decode the whole file. Raises `ItemRejected` ("not-audio", "corrupt", "endless", "silent")."""
    try:
        with open_audio(path) as file:
            digest, samples = hashlib.sha256(f"{file.rate} {file.channels}".encode()), 0
            for block in file.blocks(max_hours):
                digest.update(np.clip(np.round(block * 32768.0), -32768, 32767).astype("<i2").tobytes())
                samples += len(block)
            return ProbedAudio(file.format, file.ending, file.rate, file.channels, samples, digest.hexdigest())
    except Undecodable as error:
        raise ItemRejected(error.reason, error.detail) from None
