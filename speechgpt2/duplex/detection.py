"""What is asked for, in the wire's words, as settings of a turn taker."""

from __future__ import annotations

from speechgpt2.duplex.protocol import DialogueSettings, ServerVad
from speechgpt2.duplex.turns import TurnSettings

PATIENCE = {"low": 8000, "medium": 4000, "high": 2000, "auto": 4000}  # milliseconds


def turn_settings(settings: DialogueSettings) -> TurnSettings | None:
    """None: turns are taken by hand. Errors: `UserError` for values out of range."""
    wanted = settings.turn_detection
    if wanted is None:
        return None
    if isinstance(wanted, ServerVad):
        speculate = settings.speculate_ms if wanted.create_response else 0
        return TurnSettings(
            threshold=wanted.threshold,
            prefix=wanted.prefix_ms,
            silence=wanted.silence_ms,
            speculate=min(speculate or wanted.silence_ms, wanted.silence_ms),
            interrupt=settings.interrupt_ms,
            answer=wanted.create_response,
            interruptible=wanted.interrupt_response,
            idle=wanted.idle_timeout_ms,
        )
    # without an answer in advance nobody judges the turn, and only silence is left
    judged = wanted.create_response and settings.speculate_ms > 0
    return TurnSettings(
        ending="semantic",
        patience=PATIENCE[wanted.eagerness],
        speculate=settings.speculate_ms if judged else TurnSettings.silence,
        interrupt=settings.interrupt_ms,
        answer=wanted.create_response,
        interruptible=wanted.interrupt_response,
    )
