"""Greetings that a page offers: voices of the server, each with the speech that opens a conversation in it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


class Greeting:
    """A greeting.

    Args:
        name: The server's name for it, as a voice.
        text: What it says.
        decode: Returns its speech as `[N]` float32 at 24 kHz; None where the page cannot play it.
    """

    def __init__(self, name: str, text: str, decode: Callable[[], np.ndarray] | None = None):
        self.name, self.text, self._decode = name, text, decode
        self._pcm: np.ndarray | None = None

    @property
    def label(self) -> str:
        """What a list of greetings shows."""
        return self.text if self.name.isdigit() else f"{self.name}: {self.text}"

    @property
    def playable(self) -> bool:
        """Whether the page can play it."""
        return self._decode is not None

    def audio(self) -> np.ndarray | None:
        """Return its speech as `[N]` float32 at 24 kHz, decoded at the first call; None if it cannot be played.

        Raises:
            UserError: The codes are invalid.
        """
        if self._pcm is None and self._decode is not None:
            self._pcm = self._decode()
        return self._pcm
