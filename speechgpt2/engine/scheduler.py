"""Who does what in the next step. Knows slots, seconds and counts only; no torch, no models.

A step costs nearly the same for one slot as for many, so slots wait a little to share one: what is urgent makes a step
happen, and what merely can be done then goes with it. Urgent are slots whose reply is awaited or runs short of sound,
and sound that has waited long enough. A speaker is due again when a patch's worth of its lead has been played.

Writing is the exception: a token without sound costs a fraction of a patch with it, and many of them come before the
first sound that someone waits for. So while anyone writes, steps are kept short: writers go without the speakers, until
one of those has only a third of its lead left. And while the codec makes what someone waits for, the model rests
rather than hold that up, unless others are pressed as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from speechgpt2.engine.config import EngineConfig

PATCH = 0.12  # seconds of speech in a patch


@dataclass(frozen=True)
class Need:
    """What one slot has to do.

    `sound`: a patch of the user's sound, or the last of it, is there to be encoded, since `waited` seconds; `unread`:
    patches to take in; `replying`: a reply is under way, whose listener has `lead` seconds of sound in hand (0: none
    yet, or nothing is spoken); `writing`: its next patch is text without sound; `awaited`: what someone waits for is
    with the codec.
    """

    slot: int
    sound: bool = False
    waited: float = 0.0
    unread: int = 0
    replying: bool = False
    lead: float = 0.0
    writing: bool = False
    awaited: bool = False

    @property
    def settled(self) -> bool:
        """Whether all was taken in."""
        return not (self.sound or self.unread)


@dataclass(frozen=True)
class Plan:
    """Slots to encode, to read with, and to draw from, if they have read everything by then, and whether this is
    `urgent` for anyone; or `wait` seconds (None: for something to happen).
    """

    encode: tuple[int, ...] = ()
    read: tuple[int, ...] = ()
    draw: tuple[int, ...] = ()
    urgent: bool = False
    wait: float | None = None

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do now."""
        return not (self.encode or self.read or self.draw)


def schedule(needs: Iterable[Need], config: EngineConfig) -> Plan:
    """The next step, or how long to wait for one."""
    needs = [need for need in needs if need.sound or need.unread or need.replying]
    left = [_time_left(need, config) for need in needs]
    if not needs or min(left) > 0:
        return Plan(wait=min(left, default=None))
    needs = _short(needs, config) or needs
    readers = sorted((n for n in needs if n.unread), key=lambda n: (not n.replying, n.unread, n.slot))
    long = [need.slot for need in readers if need.unread > 1]  # those who wait for an answer first, then the shortest
    put_off = set(long[config.pieces :])
    return Plan(
        encode=tuple(need.slot for need in needs if need.sound),
        read=tuple(sorted(need.slot for need in readers if need.slot not in put_off)),
        draw=tuple(need.slot for need in needs if need.replying and need.lead < config.lead),
        urgent=any(_pressed(need, config) and not need.awaited for need in needs),
    )


def _short(needs: list[Need], config: EngineConfig) -> list[Need]:
    """What a short step holds, if this is the time for one: whoever writes, and what cannot wait beside it."""
    speakers = [need for need in needs if need.replying and need.settled and not need.writing]
    writes = any(need.writing and need.settled and need.lead < config.lead for need in needs)
    if not writes or any(_pressed(need, config) for need in speakers):
        return []
    return [need for need in needs if need not in speakers and not _time_left(need, config)]


def _pressed(need: Need, config: EngineConfig) -> bool:
    """Whether a listener waits for sound, or soon will."""
    return need.replying and need.lead <= config.lead / 3


def _time_left(need: Need, config: EngineConfig) -> float:
    """Seconds until this slot makes a step necessary."""
    if need.replying:
        return max(0.0, need.lead - (config.lead - PATCH)) if need.settled and need.lead > 0 else 0.0
    if need.unread:
        return 0.0
    return max(0.0, config.patience - need.waited)
