"""The scheduler: which slots do what in the next step. It knows slots, seconds and counts; no torch, no models.

A step costs nearly the same for one slot as for many, so slots wait a little to share one. A step is made when work is
due, and all other work that is ready joins it. Work is due when a reply has no audio yet, when a reply's buffer has
room for another patch, when patches wait to be prefilled, and when user audio has waited for `batching_delay`.

Text is the exception: a token without audio costs a fraction of a patch with audio, and many tokens come before the
first audio that a user waits for. So while a slot writes, steps are kept short: speaking slots do not join, until one
of them has only a third of its buffer left. And while the codec works on latency-critical audio, the model waits,
because it would slow the codec down, unless another slot is urgent.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from speechgpt2.engine.config import EngineConfig


@dataclass(frozen=True)
class SlotStatus:
    """The work and the urgency of one slot.

    Attributes:
        slot: The slot's number.
        audio_ready: Whether a chunk of the user's audio can be encoded.
        audio_waited: Seconds for which the chunk has waited; infinite if it must not wait.
        pending_patches: Patches to prefill.
        generating: Whether a reply is in progress.
        buffered_seconds: Seconds of audio that the client has not played, audio in the codec included. 0 until the
            first patch of speech is sampled.
        writing: Whether the reply's next patch is text without speech.
        latency_critical: Whether the codec works on audio that a user waits for.
    """

    slot: int
    audio_ready: bool = False
    audio_waited: float = 0.0
    pending_patches: int = 0
    generating: bool = False
    buffered_seconds: float = 0.0
    writing: bool = False
    latency_critical: bool = False

    @property
    def can_sample(self) -> bool:
        """Whether everything before the next patch is encoded and prefilled."""
        return not (self.audio_ready or self.pending_patches)


@dataclass(frozen=True)
class StepPlan:
    """The next step.

    Attributes:
        encode: Slots whose user audio is encoded.
        prefill: Slots with a prefill chunk.
        sample: Slots that generate a patch, if all patches before it are prefilled by then.
        urgent: Whether a client has no audio, or soon will have none, and the codec does not work on its audio now.
        wait: Without work: seconds until there is some; None if only a new command can cause it.
    """

    encode: tuple[int, ...] = ()
    prefill: tuple[int, ...] = ()
    sample: tuple[int, ...] = ()
    urgent: bool = False
    wait: float | None = None

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do now."""
        return not (self.encode or self.prefill or self.sample)


def schedule(slots: Iterable[SlotStatus], config: EngineConfig, patch_seconds: float) -> StepPlan:
    """Plan the next step.

    Args:
        slots: All slots.
        config: The engine's configuration.
        patch_seconds: Seconds of speech in a patch.

    Returns:
        The step, or how long to wait for one.
    """
    slots = [slot for slot in slots if slot.audio_ready or slot.pending_patches or slot.generating]
    time_left = [_time_left(slot, config, patch_seconds) for slot in slots]
    if not slots or min(time_left) > 0:
        return StepPlan(wait=min(time_left, default=None))
    slots = _short_step(slots, config, patch_seconds) or slots
    # If too many slots have long chunks, those with a reply, then the shortest, go first.
    long = sorted(
        (s for s in slots if s.pending_patches > 1), key=lambda s: (not s.generating, s.pending_patches, s.slot)
    )
    postponed = long[config.prefill_chunks_per_step :]
    return StepPlan(
        encode=tuple(s.slot for s in slots if s.audio_ready),
        prefill=tuple(sorted(s.slot for s in slots if s.pending_patches and s not in postponed)),
        sample=tuple(s.slot for s in slots if s.generating and s.buffered_seconds < config.buffer_seconds),
        urgent=any(_urgent(s, config) and not s.latency_critical for s in slots),
    )


def _short_step(slots: list[SlotStatus], config: EngineConfig, patch_seconds: float) -> list[SlotStatus]:
    """Return the slots of a short step: those that write, and others that are due. Empty if no slot needs one."""
    speaking = [s for s in slots if s.generating and s.can_sample and not s.writing]
    writes = any(s.writing and s.can_sample and s.buffered_seconds < config.buffer_seconds for s in slots)
    if not writes or any(_urgent(s, config) for s in speaking):
        return []
    return [s for s in slots if s not in speaking and not _time_left(s, config, patch_seconds)]


def _urgent(slot: SlotStatus, config: EngineConfig) -> bool:
    """Return whether the slot's client has no audio, or soon will have none."""
    return slot.generating and slot.buffered_seconds <= config.buffer_seconds / 3


def _time_left(slot: SlotStatus, config: EngineConfig, patch_seconds: float) -> float:
    """Return the seconds until this slot is due."""
    if slot.generating:
        if not slot.can_sample or slot.buffered_seconds <= 0:  # patches to read first, or no audio yet
            return 0.0
        return max(0.0, slot.buffered_seconds - (config.buffer_seconds - patch_seconds))
    if slot.pending_patches:
        return 0.0
    return max(0.0, config.batching_delay - slot.audio_waited)
