"""The interface of a dialogue, on which every wire protocol stands."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

import numpy as np

from speechgpt2.duplex.protocol import DialogueEvent, DialogueSettings, ReplyOptions, SessionSettings
from speechgpt2.types import Turn


class Dialogue(Protocol):
    """A spoken dialogue with one user: audio of the microphone in, turns and replies out.

    Calls return at once and take effect in their order. Samples are counted at 24 kHz.
    """

    @property
    def backlogged(self) -> bool:
        """Whether the engine has not processed all calls yet; wait before the next ones."""
        ...

    def append_audio(self, pcm: np.ndarray) -> None:
        """Process the microphone's next samples, `[N]` float32 at 24 kHz."""
        ...

    def commit_audio(self) -> None:
        """End the user's turn now.

        Raises:
            UserError: There is no audio since the last turn.
        """
        ...

    def clear_audio(self) -> None:
        """Drop the audio since the last turn."""
        ...

    def respond(self, options: ReplyOptions | None = None) -> int:
        """Start a reply; returns its number.

        Raises:
            UserError: A reply is in progress.
        """
        ...

    def interrupt(self, played: int | None, /) -> None:
        """Stop the current reply.

        Args:
            played: Samples that the user has heard; None for the dialogue's own estimate.

        Raises:
            UserError: There is no reply to stop.
        """
        ...

    def truncate(self, number: int, played: int, /) -> None:
        """Cut the reply `number` in the model's history to the samples that the user has heard."""
        ...

    def add_turn(self, turn: Turn) -> int:
        """Add a turn to the model's history; returns its number.

        Raises:
            UserError: The model does not accept it.
        """
        ...

    def delete_turn(self, number: int, /) -> None:
        """Delete a turn from the model's history."""
        ...

    def configure(self, settings: DialogueSettings | None, session_settings: SessionSettings | None, /) -> None:
        """Change settings; None keeps the current ones.

        Raises:
            UserError: A setting is invalid.
        """
        ...

    def events(self) -> AsyncIterator[DialogueEvent]:
        """Yield events until the dialogue is closed; for one reader."""
        ...

    def close(self) -> None:
        """End the dialogue and release its slot."""
        ...
