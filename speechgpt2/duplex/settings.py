"""Turn detection as clients ask for it, as settings of an endpointer."""

from __future__ import annotations

from speechgpt2.duplex.endpointing import EndpointerSettings
from speechgpt2.duplex.protocol import DialogueSettings, ServerVad

PATIENCE_MS = {"low": 8000, "medium": 4000, "high": 2000, "auto": 4000}


def endpointer_settings(settings: DialogueSettings) -> EndpointerSettings | None:
    """The endpointer's settings; None if clients commit turns themselves.

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
            prefix=wanted.prefix_ms,
            silence=wanted.silence_ms,
            speculate=min(speculate or wanted.silence_ms, wanted.silence_ms),
            interrupt=settings.interrupt_ms,
            answer=wanted.create_response,
            interruptible=wanted.interrupt_response,
            idle=wanted.idle_timeout_ms,
        )
    # Without a speculative reply the model does not tell whether the turn is complete, and only silence is left.
    speculates = wanted.create_response and settings.speculate_ms > 0
    return EndpointerSettings(
        ending="semantic",
        patience=PATIENCE_MS[wanted.eagerness],
        speculate=settings.speculate_ms if speculates else EndpointerSettings.silence,
        interrupt=settings.interrupt_ms,
        answer=wanted.create_response,
        interruptible=wanted.interrupt_response,
    )
