"""From a client's settings of turn detection to those of an endpointer."""

from __future__ import annotations

from speechgpt2.duplex.endpointing import EndpointerSettings
from speechgpt2.duplex.protocol import DialogueSettings, ServerVad

MAX_SILENCE_MS = {"low": 8000, "medium": 4000, "high": 2000, "auto": 4000}


def endpointer_settings(settings: DialogueSettings) -> EndpointerSettings | None:
    """Return the endpointer's settings; None if the client commits turns.

    Raises:
        UserError: A value is out of range.
    """
    wanted = settings.turn_detection
    if wanted is None:
        return None
    if isinstance(wanted, ServerVad):
        speculate = settings.speculate_ms if wanted.create_response else 0
        return EndpointerSettings(
            threshold=wanted.threshold,
            prefix_ms=wanted.prefix_ms,
            silence_ms=wanted.silence_ms,
            speculate_ms=min(speculate or wanted.silence_ms, wanted.silence_ms),
            interrupt_ms=settings.interrupt_ms,
            create_response=wanted.create_response,
            interrupt_response=wanted.interrupt_response,
            idle_ms=wanted.idle_timeout_ms,
        )
    # Only a speculative reply shows whether the turn is complete. Without one, silence alone ends the turn.
    speculates = wanted.create_response and settings.speculate_ms > 0
    return EndpointerSettings(
        ending="semantic",
        max_silence_ms=MAX_SILENCE_MS[wanted.eagerness],
        speculate_ms=settings.speculate_ms if speculates else EndpointerSettings.silence_ms,
        interrupt_ms=settings.interrupt_ms,
        create_response=wanted.create_response,
        interrupt_response=wanted.interrupt_response,
    )
