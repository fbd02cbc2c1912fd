"""Echo guard: the model's own voice in the microphone must not interrupt the model.

While a reply is played, a block of the microphone counts as the user's only if it is louder than the echo. The guard
estimates the echo: it correlates the newest audio of the microphone with the audio that was played before it, with
equal weight on all frequencies (GCC-PHAT: Knapp and Carter 1976, doi:10.1109/TASSP.1976.1162830). A sharp peak means
that the microphone contains the reply, and shows the delay. Least squares at that delay give the gain of the echo, its
*coupling*. If there is no peak, or the reply is a small part of the microphone's audio, there is no echo: with a
headset, a user can interrupt at any time.

This is not an echo canceller. A user who is softer than the echo is not noticed until the reply ends, and the audio of
an interruption still contains the echo. Clients that cancel echoes themselves (browsers do) are not affected.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from speechgpt2.audio import Blocks, Resampler
from speechgpt2.types import SAMPLE_RATE
from speechgpt2.vad import VAD_BLOCK, VAD_SAMPLE_RATE

# Times are in blocks of 32 ms.
MAX_DELAY = 16  # the longest delay of an echo: network, loudspeaker, room, network
REVERB = 4  # the longest reverberation
WINDOW = 20  # length of the microphone's audio that is compared
MIN_BLOCKS = 4  # blocks that must not be silent; shorter pieces of different voices are too similar

SILENCE_RMS = 1e-3  # a softer reply has no echo
MIN_PROBABILITY = 0.2  # a block with a lower probability of speech is neither a voice nor an echo
# The peak of the correlation, divided by its RMS. Echoes in rooms have 15 to 50, other voices 5 to 10.
MIN_SHARPNESS = 10.0
# The smallest share of direct sound in the microphone's audio, if it is an echo: reverberation may be twice as loud.
MIN_SHARE = 0.3
WHITENING_FLOOR = 0.1  # of the mean magnitude; weaker frequencies have less weight
LEARN, DECAY = 0.4, 0.1  # update rate of the coupling per block, with and without an echo


class EchoGuard:
    """One loudspeaker and its microphone.

    Args:
        margin: How many times louder a user must be than the direct echo of the loudest block that was played. With
            reverberation that is twice as loud as the direct sound, an echo reaches 2.6 times this level.
    """

    def __init__(self, margin: float = 3.0):
        self.margin, self.coupling = margin, 0.0
        self._to_play: deque[np.ndarray] = deque()  # blocks that are still to be played
        self._played = np.zeros((MAX_DELAY + WINDOW) * VAD_BLOCK, np.float32)
        self._microphone = np.zeros(WINDOW * VAD_BLOCK, np.float32)
        self.stop()

    def play(self, pcm: np.ndarray) -> None:
        """Note that `pcm [N]`, float32 at 24 kHz, will be played after all earlier audio."""
        self._to_play.extend(self._blocks.push(self._resampler.push(pcm)))

    def stop(self) -> None:
        """Note that audio that was not played yet is dropped."""
        self._to_play.clear()
        self._resampler, self._blocks = Resampler(SAMPLE_RATE, VAD_SAMPLE_RATE), Blocks(VAD_BLOCK)

    def may_be_user(self, block: np.ndarray, probability: float = 1.0) -> bool:
        """Return whether the microphone's next block may be the user's voice. Each call advances playback by one block.

        Args:
            block: `[VAD_BLOCK]` float32 at 16 kHz.
            probability: Probability of speech in it.
        """
        playing = self._to_play.popleft() if self._to_play else np.zeros(VAD_BLOCK, np.float32)
        self._played = np.concatenate([self._played[VAD_BLOCK:], playing])
        self._microphone = np.concatenate([self._microphone[VAD_BLOCK:], block])
        played = _levels(self._played)
        loudest_played = float(played[-MAX_DELAY - REVERB :].max())  # of the blocks whose echo may arrive now
        if loudest_played <= SILENCE_RMS:
            return True
        levels = _levels(self._microphone)
        if probability >= MIN_PROBABILITY and (levels > SILENCE_RMS).sum() >= MIN_BLOCKS:
            gain = self._gain()
            self.coupling += DECAY * (0.0 - self.coupling) if gain is None else LEARN * (gain - self.coupling)
        if (source_level := float(played[:-MAX_DELAY].max())) > SILENCE_RMS:
            # No echo is louder than all that the microphone records.
            self.coupling = min(self.coupling, float(levels.max()) / source_level)
        return bool(levels[-1] > self.margin * self.coupling * loudest_played)

    def _gain(self) -> float | None:
        """Estimate the gain of the reply in the microphone's window; None if the window contains no echo of it."""
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
    """Return the RMS of each block."""
    return np.sqrt(np.mean(np.square(pcm.reshape(-1, VAD_BLOCK)), axis=1))
