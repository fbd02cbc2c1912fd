"""The configuration of an engine: its sizes and its timing."""

from __future__ import annotations

from dataclasses import dataclass

from speechgpt2.errors import UserError
from speechgpt2.types import PATCH_SECONDS


@dataclass(frozen=True)
class EngineConfig:
    """Sizes and times of an engine.

    Args:
        slots: Sessions at once.
        context: Patches that each session remembers (a patch is 120 ms of speech or one text token).
        buffer_seconds: How far generation may be ahead of playback, in seconds. A larger buffer hides slow steps; an
            interruption wastes less with a smaller one.
        prefill_chunk_size: Most patches of one prefill chunk.
        prefill_chunks_per_step: Most chunks of more than one patch in a step. The limit keeps every step short.
        batching_delay: Seconds that a user's audio may wait to share a step with the audio of others.
        codec_process: Whether the codec runs in its own process, which is faster on several processors. The program's
            main module must then be importable (see `multiprocessing`'s spawn).

    Raises:
        UserError: A value is out of range.
    """

    slots: int = 8
    context: int = 1024
    buffer_seconds: float = 0.6
    prefill_chunk_size: int = 32
    prefill_chunks_per_step: int = 4
    batching_delay: float = 0.06
    codec_process: bool = False

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise UserError(f"slots must be at least 1, not {self.slots}")
        if self.context < 128:
            raise UserError(f"context must be at least 128 patches, not {self.context}")
        if self.buffer_seconds < PATCH_SECONDS or self.batching_delay < 0:
            raise UserError(f"buffer_seconds must be at least {PATCH_SECONDS:g}, and batching_delay not negative")
        if self.prefill_chunk_size < 2 or self.prefill_chunks_per_step < 1:
            raise UserError("prefill_chunk_size must be at least 2 patches, and prefill_chunks_per_step at least 1")
