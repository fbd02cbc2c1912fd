"""What a client's microphone sent: decoded as it comes, kept until it has become somebody's turn."""

from __future__ import annotations

import numpy as np

from speechgpt2.server import formats
from speechgpt2.server.formats import Decoder, Format
from speechgpt2.types import SAMPLE_RATE

KEPT_SECONDS = 120  # of sound that has not become a turn; what is older is let go


class Microphone:
    """Samples are counted at 24 kHz from the beginning of the session, whatever the format."""

    def __init__(self, format: Format):
        self.heard = 0  # samples in all
        self.taken = 0  # the sample up to which all is committed or cleared
        self.heard_at = 0.0  # when the latest came, by the session's clock
        self.become(format)

    def become(self, format: Format) -> None:
        """What comes now is in `format`."""
        self.format, self._decoder = format, Decoder(format)
        self._rate = formats.BYTES_PER_SECOND[format]
        self._sound, self._first = bytearray(), self.heard  # and the sample with which it begins

    @property
    def waiting_ms(self) -> int:
        """Milliseconds that have not become a turn."""
        return formats.milliseconds(self.heard - self.taken)

    def push(self, data: bytes, now: float) -> np.ndarray:
        """The next bytes -> `pcm [N]`. Errors: `UserError` for half a sample."""
        pcm = self._decoder.push(data)
        self._sound += data
        self.heard += len(pcm)
        self.heard_at = now
        self._let_go(self.heard - KEPT_SECONDS * SAMPLE_RATE)
        return pcm

    def take(self, start: int, end: int) -> bytes:
        """The bytes from sample `start` to `end`; they and what was before are let go."""
        sound = bytes(self._sound[self._byte(start) : self._byte(end)])
        self._let_go(end)
        self.taken = max(self.taken, end)
        return sound

    def moment(self, sample: int) -> float:
        """When `sample` was spoken, by the session's clock."""
        return self.heard_at - (self.heard - sample) / SAMPLE_RATE

    def _let_go(self, sample: int) -> None:
        if sample > self._first:
            del self._sound[: self._byte(sample)]
            self._first = min(sample, self.heard)

    def _byte(self, sample: int) -> int:
        """Where a sample begins in what is kept; samples of one byte stay together."""
        width = 2 if self.format == "audio/pcm" else 1
        return max(0, (sample - self._first) * self._rate // SAMPLE_RATE // width * width)
