"""Echo guard: the model's own voice in the microphone must not interrupt the model.

While a reply is being played, a block of the microphone counts as the user's only if it is louder than the echo. How
loud that is, is learnt by looking for the reply in the microphone: the newest audio of the microphone is correlated
with what was played before it, all frequencies counting alike (GCC-PHAT: Knapp and Carter 1976,
doi:10.1109/TASSP.1976.1162830). A sharp peak says that the reply is in there, and with which delay. Least squares at
that delay say how loud it came back, its *coupling*. Without a peak, or if the reply is little of what the microphone
has, there is a user: on a headset, a user can interrupt at any time.

This is no echo canceller. A user who is softer than the loudspeaker is not noticed until the reply ends, and what the
microphone has then is still mixed with the echo. Clients that cancel echoes themselves (browsers do) lose nothing.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from speechgpt2.audio import Blocks, Resampler
from speechgpt2.types import SAMPLE_RATE
from speechgpt2.vad import VAD_BLOCK, VAD_SAMPLE_RATE

# Times are in blocks of 32 ms.
MAX_DELAY = 16  # within which an echo comes back: network, loudspeaker, room, network
REVERB = 4  # for which it is heard at most
WINDOW = 20  # of the microphone that are compared
MIN_BLOCKS = 4  # with sound in the window: all voices are alike for a period or two

SILENCE_RMS = 1e-3  # below which nothing worth guarding against is played
MIN_PROBABILITY = 0.2  # of speech, below which a block is neither a voice nor its echo
# Times the RMS of the correlation at other delays. Echoes in rooms have 15 to 50, other voices 5 to 10.
MIN_SHARPNESS = 10.0
# Of the microphone's audio that the direct sound makes up, where it is an echo. Rooms add up to twice as much.
MIN_SHARE = 0.3
WHITENING_FLOOR = 0.1  # of the mean magnitude: weaker frequencies count for less
LEARN, DECAY = 0.4, 0.1  # how fast the coupling is learnt and, where no echo is found, decays, per block


class EchoGuard:
    """One loudspeaker and its microphone.

    Args:
        margin: How many times louder than the echo's direct sound the microphone must be. Reverberation alone
            reaches half of it.
    """

    def __init__(self, margin: float = 3.0):
        self.margin, self.coupling = margin, 0.0
        self._to_play: deque[np.ndarray] = deque()  # blocks that are still to be played
        self._played = np.zeros((MAX_DELAY + WINDOW) * VAD_BLOCK, np.float32)
        self._microphone = np.zeros(WINDOW * VAD_BLOCK, np.float32)
        self.stop()

    def play(self, pcm: np.ndarray) -> None:
        """Note that `pcm [N]`, float32 at 24 kHz, is played after all before."""
        self._to_play.extend(self._blocks.push(self._resampler.push(pcm)))

    def stop(self) -> None:
        """Note that the rest is not played."""
        self._to_play.clear()
        self._resampler, self._blocks = Resampler(SAMPLE_RATE, VAD_SAMPLE_RATE), Blocks(VAD_BLOCK)

    def admits(self, block: np.ndarray, probability: float = 1.0) -> bool:
        """Take the microphone's next block, during which a block of the reply is played.

        Args:
            block: `[VAD_BLOCK]` float32 at 16 kHz.
            probability: Of speech in it.

        Returns:
            Whether it may be the user's.
        """
        playing = self._to_play.popleft() if self._to_play else np.zeros(VAD_BLOCK, np.float32)
        self._played = np.concatenate([self._played[VAD_BLOCK:], playing])
        self._microphone = np.concatenate([self._microphone[VAD_BLOCK:], block])
        played = _levels(self._played)
        echo = float(played[-MAX_DELAY - REVERB :].max())  # the loudest that may come back now
        if echo <= SILENCE_RMS:
            return True
        levels = _levels(self._microphone)
        if probability >= MIN_PROBABILITY and (levels > SILENCE_RMS).sum() >= MIN_BLOCKS:
            gain = self._gain()
            self.coupling += DECAY * (0.0 - self.coupling) if gain is None else LEARN * (gain - self.coupling)
        if (source := float(played[:-MAX_DELAY].max())) > SILENCE_RMS:
            self.coupling = min(self.coupling, float(levels.max()) / source)
        return bool(levels[-1] > self.margin * self.coupling * echo)

    def _gain(self) -> float | None:
        """The gain with which the reply is in the microphone's window; None if it is not, or hardly."""
        size = 1 << (len(self._played) - 1).bit_length()
        cross = np.conj(np.fft.rfft(self._microphone, size)) * np.fft.rfft(self._played, size)
        magnitude = np.abs(cross)
        correlation = np.abs(
            np.fft.irfft(cross / (magnitude + WHITENING_FLOOR * magnitude.mean()), size)[: MAX_DELAY * VAD_BLOCK + 1]
        )
        at = int(correlation.argmax())
        source = self._played[at : at + len(self._microphone)]
        common, power = abs(float(self._microphone @ source)), float(source @ source)
        sharp = correlation[at] > MIN_SHARPNESS * np.sqrt(np.mean(np.square(correlation)))
        large = common > MIN_SHARE * np.sqrt(power * float(self._microphone @ self._microphone))
        return common / power if sharp and large else None


def _levels(pcm: np.ndarray) -> np.ndarray:
    """RMS of each block."""
    return np.sqrt(np.mean(np.square(pcm.reshape(-1, VAD_BLOCK)), axis=1))
