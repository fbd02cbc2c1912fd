"""What came of a session: its events, and what its model remembers."""

from __future__ import annotations

import numpy as np
import torch

from speechgpt2.types import AudioDelta, Patches, ReplyDone


def events(session) -> list:
    """All that are there."""
    found = []
    while (event := session.event_queue.get()) is not None:
        found.append(event)
    return found


def audio_of(found) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.float32), *(e.pcm for e in found if isinstance(e, AudioDelta))])


def reason(found) -> str | None:
    return next((event.reason for event in found if isinstance(event, ReplyDone)), None)


def context_of(session) -> Patches:
    """All that the session's model has been told."""
    context = session.slot.history.context
    return context.patches(0, context.length)


def same(a, b) -> bool:
    """Whether the models of two sessions have been told the same."""
    return all(torch.equal(x, y) for x, y in zip(context_of(a), context_of(b), strict=True))
