"""The configuration of an engine: its sizes and its timing."""

from __future__ import annotations

from dataclasses import dataclass, replace

from speechgpt2.errors import UserError
from speechgpt2.types import PATCH_SECONDS

LARGE_WIDTH = 2048  # of the hidden states of a model with billions of weights


@dataclass(frozen=True)
class EngineConfig:
    """Sizes and times of an engine.

    Args:
        slots: Sessions at once.
        context: Patches that each session remembers (a patch is 120 ms of speech or one text token).
        buffer_seconds: How far generation may be ahead of playback, in seconds. A larger buffer hides slow steps; an
            interruption wastes less with a smaller one.
        prefill_chunk_size: Most patches of one prefill chunk. None: what suits the device (`for_device`).
        prefill_chunks_per_step: Most chunks of more than one patch in a step. The limit keeps every step short. None:
            what suits the device.
        batching_delay: Seconds that a user's audio may wait to share a step with the audio of others.
        codec_process: Whether the codec runs in its own process, which is faster on several processors. The program's
            main module must then be importable (see `multiprocessing`'s spawn).

    Raises:
        UserError: A value is out of range.
    """

    slots: int = 8
    context: int = 1024
    buffer_seconds: float = 0.6
    prefill_chunk_size: int | None = None
    prefill_chunks_per_step: int | None = None
    batching_delay: float = 0.06
    codec_process: bool = False

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise UserError(f"slots must be at least 1, not {self.slots}")
        if self.context < 128:
            raise UserError(f"context must be at least 128 patches, not {self.context}")
        if self.buffer_seconds < PATCH_SECONDS or self.batching_delay < 0:
            raise UserError(f"buffer_seconds must be at least {PATCH_SECONDS:g}, and batching_delay not negative")
        size, count = self.prefill_chunk_size, self.prefill_chunks_per_step
        if (size is not None and size < 2) or (count is not None and count < 1):
            raise UserError("prefill_chunk_size must be at least 2 patches, and prefill_chunks_per_step at least 1")

    def for_device(self, device: str, width: int) -> EngineConfig:
        """Return it with a choice for what is None.

        Short chunks let sessions that speak go on between them. Where that is not at stake, longer ones are faster: a
        GPU prefills many patches in the time of one, and a large model on a CPU does not speak in real time, but its
        matrices are then read and dequantized less often.

        Args:
            device: Its type, as "cuda".
            width: Of the language model's hidden states.
        """
        size, count = (128, 8) if device == "cuda" else (128, 1) if width >= LARGE_WIDTH else (32, 4)
        size, count = self.prefill_chunk_size or size, self.prefill_chunks_per_step or count
        return replace(self, prefill_chunk_size=size, prefill_chunks_per_step=count)
