"""The client's microphone: decodes its audio, and keeps it until it belongs to a user turn."""

from __future__ import annotations

import numpy as np

from speechgpt2.server import audio_formats
from speechgpt2.server.audio_formats import WireDecoder, WireFormat
from speechgpt2.types import SAMPLE_RATE

MAX_SECONDS = 120  # of audio outside of turns that is kept; older audio is dropped


class MicrophoneBuffer:
    """Audio received from a client. Samples are counted at 24 kHz from the session's start, whatever the format.

    Attributes:
        received: Samples received.
        committed: The sample up to which all audio is committed or cleared.
        received_at: When the latest audio came, in seconds of the session's clock.
    """

    def __init__(self, format: WireFormat):
        self.received = 0
        self.committed = 0
        self.received_at = 0.0
        self.set_format(format)

    def set_format(self, format: WireFormat) -> None:
        """Expect audio in `format` from now on. Drops the audio kept in the old format."""
        self.format, self._decoder = format, WireDecoder(format)
        self._rate = audio_formats.BYTES_PER_SECOND[format]
        self._data, self._first_sample = bytearray(), self.received

    @property
    def uncommitted_ms(self) -> int:
        """Milliseconds of audio that belong to no turn."""
        return audio_formats.to_milliseconds(self.received - self.committed)

    def splits_sample(self, data: bytes) -> bool:
        """Whether received bytes end in the middle of a sample."""
        return self.format not in audio_formats.LAWS and len(data) % 2 == 1

    def push(self, data: bytes, now: float) -> np.ndarray:
        """Add received bytes.

        Returns:
            The decoded samples, `[N]` float32 at 24 kHz.

        Raises:
            UserError: The bytes end in the middle of a sample.
        """
        pcm = self._decoder.push(data)
        self._data += data
        self.received += len(pcm)
        self.received_at = now
        self._drop_until(self.received - MAX_SECONDS * SAMPLE_RATE)
        return pcm

    def take(self, start: int, end: int) -> bytes:
        """Remove and return the bytes from sample `start` to `end`; earlier audio is dropped."""
        data = bytes(self._data[self._offset(start) : self._offset(end)])
        self._drop_until(end)
        self.committed = max(self.committed, end)
        return data

    def time_of(self, sample: int) -> float:
        """Return when `sample` was spoken, in seconds of the session's clock."""
        return self.received_at - (self.received - sample) / SAMPLE_RATE

    def _drop_until(self, sample: int) -> None:
        if sample > self._first_sample:
            del self._data[: self._offset(sample)]
            self._first_sample = min(sample, self.received)

    def _offset(self, sample: int) -> int:
        """Return the byte offset of a sample in the kept audio, rounded down to a whole sample."""
        width = 1 if self.format in audio_formats.LAWS else 2
        return max(0, (sample - self._first_sample) * self._rate // SAMPLE_RATE // width * width)
