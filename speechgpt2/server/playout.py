"""Playout in real time, for transports that send audio at the speed of its playback, in frames of 20 ms.

The counterpart of microphone.py. Audio that was sent counts as played; audio in the buffer can still be dropped.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from speechgpt2.server import audio_formats
from speechgpt2.server.response import RealtimeResponse

FRAME = audio_formats.to_samples(20)
JITTER_FRAMES = 2  # frames of silence before audio that comes into an empty buffer, in case the next is a little late


class PlayoutListener(Protocol):
    """Receives the start and the end of every response's playout."""

    def playout_started(self, response: RealtimeResponse) -> None:
        """The first frame of a response leaves."""
        ...

    def playout_stopped(self, response: RealtimeResponse) -> None:
        """The last frame of a response has left."""
        ...


@dataclass(eq=False)
class PlayoutEntry:
    """The audio of one response.

    Attributes:
        pending: Audio that has not left, `[N]` at 24 kHz.
        sent: Samples that have left.
        complete: Whether no more audio comes.
    """

    response: RealtimeResponse
    pending: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    sent: int = 0
    complete: bool = False


class PlayoutBuffer:
    """The audio of responses, one after the other."""

    def __init__(self, listener: PlayoutListener):
        self._listener = listener
        self._entries: deque[PlayoutEntry] = deque()
        self._pause = 0

    @property
    def busy(self) -> bool:
        """Whether a response has not left completely."""
        return bool(self._entries)

    def push(self, response: RealtimeResponse, pcm: np.ndarray) -> None:
        """Queue `pcm [N]` of a response."""
        if not any(len(entry.pending) for entry in self._entries):
            self._pause = JITTER_FRAMES
        if not self._entries or self._entries[-1].response is not response:
            self._entries.append(PlayoutEntry(response))
        entry = self._entries[-1]
        entry.pending = np.concatenate([entry.pending, pcm])

    def finish(self, response: RealtimeResponse) -> None:
        """Mark a response as complete."""
        for entry in self._entries:
            entry.complete = entry.complete or entry.response is response

    def clear(self) -> list[PlayoutEntry]:
        """Drop all pending audio; returns the entries that are cut short."""
        dropped, self._pause = list(self._entries), 0
        self._entries.clear()
        return dropped

    def next_frame(self) -> np.ndarray:
        """Return the next 20 ms, `[480]` float32 at 24 kHz; silence if nothing is pending."""
        frame, entry = np.zeros(FRAME, np.float32), self._current()
        if entry is not None and self._pause:
            self._pause -= 1
        elif entry is not None and len(entry.pending):
            if not entry.sent:
                self._listener.playout_started(entry.response)
            pcm, entry.pending = entry.pending[:FRAME], entry.pending[FRAME:]
            frame[: len(pcm)] = pcm
            entry.sent += len(pcm)
        return frame

    def _current(self) -> PlayoutEntry | None:
        """Return the response that plays; remove those that have left completely."""
        while self._entries and self._entries[0].complete and not len(self._entries[0].pending):
            self._listener.playout_stopped(self._entries.popleft().response)
        return self._entries[0] if self._entries else None
