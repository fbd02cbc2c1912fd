"""Is it sound, how long, and which sound: a file is decoded once, to its end."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speechgpt2.data.crawl.verdicts import Rejected
from speechgpt2.data.decoding import Undecodable, opened


@dataclass(frozen=True)
class Sound:
    """What a file holds.

    format       the container as libsndfile or ffmpeg names it
    ending       what the file should be named, from its content
    fingerprint  hash of the decoded 16-bit samples, equal for equal sound in any lossless wrapping
    """

    format: str
    ending: str
    sample_rate: int
    channels: int
    samples: int
    fingerprint: str

    @property
    def seconds(self) -> float:
        return self.samples / self.sample_rate


def probe(path: Path, max_hours: float) -> Sound:
    """Decode the whole file. Errors: `Rejected` ("not-audio", "corrupt", "endless", "silent")."""
    try:
        with opened(path) as file:
            digest, samples = hashlib.sha256(f"{file.rate} {file.channels}".encode()), 0
            for block in file.blocks(max_hours):
                digest.update(np.clip(np.round(block * 32768.0), -32768, 32767).astype("<i2").tobytes())
                samples += len(block)
            return Sound(file.format, file.ending, file.rate, file.channels, samples, digest.hexdigest())
    except Undecodable as error:
        raise Rejected(error.reason, error.detail) from None
