"""What the model says comes back through the microphone of whoever listens on a loudspeaker, and must not interrupt it.

Half-duplex gating with a level test: while an answer is being played, a block of the microphone counts as the user's
only if it is louder than the echo can be. How loud that is, is learnt: the *coupling*, microphone over loudspeaker, is
the peak of what came in over the peak of what can have caused it. It falls fast and rises slowly, since a user's voice
looks like a louder echo. On a headset it is nothing after half a second, and the user is heard as if nothing were
playing; on a loudspeaker it settles at the echo, and the user must speak `margin` above it.

This is no echo canceller: one who speaks more softly than the loudspeaker is not heard until the answer ends, and what
is heard then is still mixed with the echo. Clients that cancel echoes themselves (browsers do) lose nothing by it.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from speechgpt2.types import SAMPLE_RATE

BLOCK = 768  # samples (32 ms) with one level
DELAY = 8  # blocks (256 ms) after which a sound has come back: way to the listener, room, way back
WINDOW = 20  # blocks whose peaks are compared
QUIET = 1e-3  # RMS below which nothing worth guarding against is played
TELLING = 0.02  # RMS of what is played from which the coupling is learnt
START = 1.0  # coupling assumed before anything is known: a loudspeaker close to the microphone
FALL, RISE = 0.4, 0.002  # how fast the coupling follows, per block


class EchoGuard:
    """One loudspeaker and its microphone. `margin`: how much louder than the echo a user is (2 is 6 dB)."""

    def __init__(self, margin: float = 2.0):
        self.margin, self.coupling = margin, START
        self._levels: deque[float] = deque()  # of what is still to be played, a block each
        self._rest = np.zeros(0, np.float32)
        self._played: deque[float] = deque([0.0] * WINDOW, maxlen=WINDOW)  # the newest levels of either
        self._heard: deque[float] = deque([0.0] * WINDOW, maxlen=WINDOW)

    def play(self, pcm: np.ndarray) -> None:
        """`pcm [N]` was given to the listener, to be played after all before."""
        sound = np.concatenate([self._rest, pcm])
        whole = len(sound) // BLOCK * BLOCK
        self._rest = sound[whole:].copy()
        self._levels.extend(np.sqrt(np.mean(np.square(sound[:whole].reshape(-1, BLOCK)), axis=1)).tolist())

    def stop(self) -> None:
        """What was not played yet never will be."""
        self._levels.clear()
        self._rest = self._rest[:0]

    @property
    def left(self) -> float:
        """Seconds that are still to be played."""
        return (len(self._levels) * BLOCK + len(self._rest)) / SAMPLE_RATE

    def admits(self, level: float) -> bool:
        """A block of the microphone passes, as one of playback does: may this `level` (RMS) be the user's?"""
        self._played.append(self._levels.popleft() if self._levels else 0.0)
        self._heard.append(level)
        played = list(self._played)
        echo = max(played[-DELAY - 4 :])  # what may be coming back now, and its last reverberation
        if echo <= QUIET:
            return True
        louder = level > self.margin * self.coupling * echo
        if (cause := max(played[:-DELAY])) > TELLING:
            ratio = max(self._heard) / cause
            self.coupling += (FALL if ratio < self.coupling else RISE) * (ratio - self.coupling)
        return louder
