"""What the model says comes back through the microphone of whoever listens on a loudspeaker, and must not interrupt it.

While an answer is being played, a block of the microphone counts as the user's only if it is louder than the echo. How
loud that is, is learnt by looking for the answer in the microphone: the newest of what was heard is correlated with
what was played before it, all frequencies counting alike (GCC-PHAT: Knapp and Carter 1976,
doi:10.1109/TASSP.1976.1162830). A sharp peak says that the answer is in there, and how long it took; least squares at
that delay say how loud it came back, its *coupling*. Without a peak, or if what is there is little of what is heard,
there is a user: on a headset, anyone can break in at any time.

This is no echo canceller: one who speaks more softly than the loudspeaker is not heard until the answer ends, and what
is heard then is still mixed with the echo. Clients that cancel echoes themselves (browsers do) lose nothing by it.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from speechgpt2.audio import Blocks, Resampler
from speechgpt2.types import SAMPLE_RATE
from speechgpt2.vad import VAD_BLOCK, VAD_SAMPLE_RATE

DELAY = 16  # blocks (512 ms) within which a sound has come back: way to the listener, room, way back
REVERBERATION = 4  # blocks for which it is heard at most
WINDOW = 20  # blocks (640 ms) of the microphone that are compared
QUIET = 1e-3  # RMS below which nothing worth guarding against is played, or can be told from noise
LEAST = 4  # blocks of them with sound: voices are all alike for a period or two
SHARP = 10.0  # times the RMS of a correlation at other delays: echoes in rooms have 15 to 50, other voices 5 to 10
PART = 0.3  # of what is heard that the direct sound is at least, where it is an echo: rooms add up to twice as much
EQUALISED = 0.1  # of the mean magnitude: frequencies weaker than that count for less
SPEECH = 0.2  # probability below which a block is nobody's voice, nor its echo's
FOLLOW, FORGET = 0.4, 0.1  # how fast the coupling is learnt and, where no echo is found, forgotten, per block


class EchoGuard:
    """One loudspeaker and its microphone. `margin`: how much louder than the echo's direct sound a user is; what
    the room adds is up to half of it.
    """

    def __init__(self, margin: float = 3.0):
        self.margin, self.coupling = margin, 0.0
        self._coming: deque[np.ndarray] = deque()  # blocks that are still to be played
        self._played = np.zeros((DELAY + WINDOW) * VAD_BLOCK, np.float32)
        self._heard = np.zeros(WINDOW * VAD_BLOCK, np.float32)
        self.stop()

    def play(self, pcm: np.ndarray) -> None:
        """`pcm [N]` at 24 kHz was given to the listener, to be played after all before."""
        self._coming.extend(self._blocks.push(self._resampler.push(pcm)))

    def stop(self) -> None:
        """What was not played yet never will be."""
        self._coming.clear()
        self._resampler, self._blocks = Resampler(SAMPLE_RATE, VAD_SAMPLE_RATE), Blocks(VAD_BLOCK)

    def admits(self, block: np.ndarray, probability: float = 1.0) -> bool:
        """The microphone's next `block [VAD_BLOCK]` at 16 kHz passes, and as much of playback: may it be the user's,
        who speaks with this probability?
        """
        playing = self._coming.popleft() if self._coming else np.zeros(VAD_BLOCK, np.float32)
        self._played = np.concatenate([self._played[VAD_BLOCK:], playing])
        self._heard = np.concatenate([self._heard[VAD_BLOCK:], block])
        played = _levels(self._played)
        echo = float(played[-DELAY - REVERBERATION :].max())  # of what may be coming back now
        if echo <= QUIET:
            return True
        heard = _levels(self._heard)
        if probability >= SPEECH and (heard > QUIET).sum() >= LEAST:
            gain = self._gain()
            self.coupling += FORGET * (0.0 - self.coupling) if gain is None else FOLLOW * (gain - self.coupling)
        if (cause := float(played[:-DELAY].max())) > QUIET:
            self.coupling = min(self.coupling, float(heard.max()) / cause)
        return bool(heard[-1] > self.margin * self.coupling * echo)

    def _gain(self) -> float | None:
        """How loud what was played is in what is heard; None if it is not, or hardly."""
        size = 1 << (len(self._played) - 1).bit_length()
        cross = np.conj(np.fft.rfft(self._heard, size)) * np.fft.rfft(self._played, size)
        magnitude = np.abs(cross)
        likeness = np.abs(
            np.fft.irfft(cross / (magnitude + EQUALISED * magnitude.mean()), size)[: DELAY * VAD_BLOCK + 1]
        )
        at = int(likeness.argmax())
        cause = self._played[at : at + len(self._heard)]
        common, power = abs(float(self._heard @ cause)), float(cause @ cause)
        sharp = likeness[at] > SHARP * np.sqrt(np.mean(np.square(likeness)))
        large = common > PART * np.sqrt(power * float(self._heard @ self._heard))
        return common / power if sharp and large else None


def _levels(sound: np.ndarray) -> np.ndarray:
    """RMS of each block."""
    return np.sqrt(np.mean(np.square(sound.reshape(-1, VAD_BLOCK)), axis=1))
