"""What goes to a client's loudspeaker in real time: answers wait here, leave in frames of 20 ms, and are counted.

The counterpart of microphone.py, for a transport that carries sound as it is to be played. What has left counts as
heard; what waits can still be taken away.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from speechgpt2.server import formats
from speechgpt2.server.formats import Upsampler
from speechgpt2.server.response import Response
from speechgpt2.types import SAMPLE_RATE

RATE = 2 * SAMPLE_RATE  # of what leaves: Opus' own
FRAME = formats.samples(20)
CUSHION = 2  # frames of silence before sound that finds nothing waiting: the next may come a little late


@dataclass(eq=False)
class Utterance:
    """What is to be heard of one answer: `waiting [N]` at 24 kHz, and how many samples have been `sent`."""

    response: Response
    waiting: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    sent: int = 0
    whole: bool = False  # no more comes


class Speaker:
    """Answers, one after the other. `started` is called with the first frame of one, `stopped` after its last."""

    def __init__(self, started: Callable[[Response], None], stopped: Callable[[Response], None]):
        self._started, self._stopped = started, stopped
        self._utterances: deque[Utterance] = deque()
        self._upsampler, self._pause = Upsampler(RATE // SAMPLE_RATE), 0

    @property
    def busy(self) -> bool:
        """Whether there is an answer that has not been heard to its end."""
        return bool(self._utterances)

    def push(self, response: Response, pcm: np.ndarray) -> None:
        """The next speech of an answer, `pcm [N]`."""
        if not any(len(utterance.waiting) for utterance in self._utterances):
            self._pause = CUSHION
        if not self._utterances or self._utterances[-1].response is not response:
            self._utterances.append(Utterance(response))
        utterance = self._utterances[-1]
        utterance.waiting = np.concatenate([utterance.waiting, pcm])

    def finish(self, response: Response) -> None:
        """No more of this answer comes."""
        for utterance in self._utterances:
            utterance.whole = utterance.whole or utterance.response is response

    def clear(self) -> list[Utterance]:
        """What waits will not be sent; returns the answers that are cut short by it."""
        dropped, self._pause = list(self._utterances), 0
        self._utterances.clear()
        return dropped

    def frame(self) -> np.ndarray:
        """The next 20 ms to be sent, `[960]` float32 at 48 kHz: silence when nothing waits."""
        frame, utterance = np.zeros(FRAME, np.float32), self._next()
        if utterance is not None and self._pause:
            self._pause -= 1
        elif utterance is not None and len(utterance.waiting):
            if not utterance.sent:
                self._started(utterance.response)
            sound, utterance.waiting = utterance.waiting[:FRAME], utterance.waiting[FRAME:]
            frame[: len(sound)] = sound
            utterance.sent += len(sound)
        return self._upsampler.push(frame)

    def _next(self) -> Utterance | None:
        """The answer that is being heard."""
        while self._utterances and self._utterances[0].whole and not len(self._utterances[0].waiting):
            self._stopped(self._utterances.popleft().response)
        return self._utterances[0] if self._utterances else None
