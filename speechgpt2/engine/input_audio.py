"""The user's speech before it is encoded: audio of any length in, chunks of a patch out."""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from speechgpt2.audio import Blocks
from speechgpt2.engine.codec_worker import AudioChunk


class InputAudioBuffer:
    """One spoken turn of the user.

    Args:
        patch_samples: Samples of a patch.

    Attributes:
        patches: Whole patches of audio that are not submitted to the codec yet.
        in_flight: The chunk that the codec encodes now.
        ended: Whether the user has finished speaking.
        tail: Patches that the end of the turn has added to the context, which `Rollback` removes; 0 until then.
    """

    def __init__(self, patch_samples: int):
        self.patches: deque[np.ndarray] = deque()
        self.in_flight: AudioChunk | None = None
        self.ended, self.tail = False, 0
        self._waiting_since = 0.0  # when audio last arrived in an empty queue, by the engine's clock in seconds
        self._first = True  # nothing is encoded yet
        self._blocks, self._rest = Blocks(patch_samples), np.zeros(0, np.float32)

    @property
    def encoded(self) -> bool:
        """Whether the turn has ended and all of it is in the context."""
        return self.tail > 0

    @property
    def encoding_end(self) -> bool:
        """Whether the turn has ended and some of it is not in the context yet."""
        return self.ended and not self.encoded

    @property
    def final_in_flight(self) -> bool:
        """Whether the codec works on the end of the turn."""
        return self.in_flight is not None and self.in_flight.final

    @property
    def ready(self) -> bool:
        """Whether a chunk can be encoded now. Chunks are encoded one after the other."""
        return self.in_flight is None and (bool(self.patches) or self.encoding_end)

    def waited(self, now: float) -> float:
        """Return the seconds for which the next chunk has waited: infinite at the end of a turn.

        The user then waits for an answer, so this audio does not wait for that of others.
        """
        return math.inf if self.ended else now - self._waiting_since

    def append(self, pcm: np.ndarray, time: float) -> None:
        """Add `pcm [N]`, received at `time`."""
        if not self.patches:
            self._waiting_since = time
        self.patches.extend(self._blocks.push(pcm))

    def next_chunk(self) -> AudioChunk:
        """Return the chunk to encode now, which is then in flight: a whole patch, or the rest that ends the turn."""
        if self.patches:
            self.in_flight = AudioChunk(self.patches.popleft(), self._first, final=False)
            self._first = False
        else:
            self._rest = self._blocks.rest()
            self.in_flight = AudioChunk(self._rest, self._first, final=True)
        return self.in_flight

    def reopen(self) -> None:
        """Undo the end of the turn. The codes of its last chunk will be ignored."""
        self.ended, self.tail = False, 0
        if self.final_in_flight:
            self.in_flight = None
        rest, self._rest = self._rest, self._rest[:0]
        self.patches.extend(self._blocks.push(rest))
