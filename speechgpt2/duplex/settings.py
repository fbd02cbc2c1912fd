"""From a client's settings of turn detection to those of an endpointer."""

from __future__ import annotations

from speechgpt2.duplex.endpointing import EndpointerSettings
from speechgpt2.duplex.protocol import DialogueSettings, ServerVad

CHECKED_AFTER_MS = 64  # silence after which the model tells whether a turn is complete, so that it has time to
MAX_SILENCE_MS = {"low": 8000, "medium": 4000, "high": 2000, "auto": 4000}


def endpointer_settings(settings: DialogueSettings) -> EndpointerSettings | None:
    """Return the endpointer's settings; None if the client commits turns.

    Raises:
        UserError: A value is out of range.
    """
    detection = settings.turn_detection
    if detection is None:
        return None
    if isinstance(detection, ServerVad):
        speculate = settings.speculate_ms if detection.create_response else 0
        return EndpointerSettings(
            threshold=detection.threshold,
            prefix_ms=detection.prefix_ms,
            silence_ms=detection.silence_ms,
            speculate_ms=min(speculate or detection.silence_ms, detection.silence_ms),
            interrupt_ms=settings.interrupt_ms,
            create_response=detection.create_response,
            interrupt_response=detection.interrupt_response,
            idle_ms=detection.idle_timeout_ms,
        )
    # Only a speculative reply shows whether the turn is complete. Without one, silence alone ends the turn.
    speculates = detection.create_response and settings.speculate_ms > 0
    return EndpointerSettings(
        ending="semantic",
        max_silence_ms=MAX_SILENCE_MS[detection.eagerness],
        speculate_ms=min(CHECKED_AFTER_MS, settings.speculate_ms) if speculates else EndpointerSettings.silence_ms,
        interrupt_ms=settings.interrupt_ms,
        create_response=detection.create_response,
        interrupt_response=detection.interrupt_response,
    )
