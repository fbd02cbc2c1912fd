"""Which slots do what in the next step. Knows slots, seconds and counts only; no torch, no models.

A step costs nearly the same for one slot as for many, so slots wait a little to share one. Pressing work makes a step
happen, and other work that is ready joins it. Pressing are replies that are awaited or run short of audio, and user
audio that has waited long enough. A slot that speaks is due again when a patch of its buffered audio has been played.

Text is the exception: a token without audio costs a fraction of a patch with it, and many of them come before the
first audio that a user waits for. So while a slot writes, steps are kept short: writing slots go without the speaking
ones, until one of those has only a third of its buffer left. And while the codec works on latency-critical audio, the
model rests rather than slow it down, unless other slots are pressed as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from speechgpt2.engine.config import EngineConfig


@dataclass(frozen=True)
class SlotStatus:
    """What one slot has to do.

    Attributes:
        slot: The slot's number.
        audio_ready: Whether a chunk of the user's audio can be encoded.
        audio_waited: Seconds for which it has waited.
        pending_patches: Patches to prefill.
        generating: Whether a reply is under way.
        buffered_seconds: Seconds of audio that the listener has, or is about to get. 0 before the first.
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
        prefill: Slots that take in patches.
        sample: Slots that generate a patch, if everything before it is prefilled by then.
        urgent: Whether a listener waits for the step.
        wait: If there is nothing to do now: seconds until there is, None for until something happens.
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
    # Awaited replies first, then the shortest.
    prefills = sorted(
        (s for s in slots if s.pending_patches), key=lambda s: (not s.generating, s.pending_patches, s.slot)
    )
    long = [s.slot for s in prefills if s.pending_patches > 1]
    postponed = set(long[config.prefill_chunks_per_step :])
    return StepPlan(
        encode=tuple(s.slot for s in slots if s.audio_ready),
        prefill=tuple(sorted(s.slot for s in prefills if s.slot not in postponed)),
        sample=tuple(s.slot for s in slots if s.generating and s.buffered_seconds < config.buffer_seconds),
        urgent=any(_pressed(s, config) and not s.latency_critical for s in slots),
    )


def _short_step(slots: list[SlotStatus], config: EngineConfig, patch_seconds: float) -> list[SlotStatus]:
    """The slots of a short step, if it is time for one: those that write, and what cannot wait beside them."""
    speaking = [s for s in slots if s.generating and s.can_sample and not s.writing]
    writes = any(s.writing and s.can_sample and s.buffered_seconds < config.buffer_seconds for s in slots)
    if not writes or any(_pressed(s, config) for s in speaking):
        return []
    return [s for s in slots if s not in speaking and not _time_left(s, config, patch_seconds)]


def _pressed(slot: SlotStatus, config: EngineConfig) -> bool:
    """Whether a listener waits for audio, or soon will."""
    return slot.generating and slot.buffered_seconds <= config.buffer_seconds / 3


def _time_left(slot: SlotStatus, config: EngineConfig, patch_seconds: float) -> float:
    """Seconds until this slot makes a step necessary."""
    if slot.generating:
        due_at = config.buffer_seconds - patch_seconds
        return max(0.0, slot.buffered_seconds - due_at) if slot.can_sample and slot.buffered_seconds > 0 else 0.0
    if slot.pending_patches:
        return 0.0
    return max(0.0, config.batching_delay - slot.audio_waited)
