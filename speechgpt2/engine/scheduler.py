"""Who does what in the next step. Knows slots, seconds and counts only; no torch, no models.

A step costs nearly the same for one slot as for many, so slots wait a little to share one: what is urgent makes a step
happen, and what merely can be done then goes with it. Urgent are slots whose reply is awaited or runs short of sound,
and sound that has waited long enough. A speaker is due again when a patch's worth of its lead has been played.
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
    yet, or nothing is spoken).
    """

    slot: int
    sound: bool = False
    waited: float = 0.0
    unread: int = 0
    replying: bool = False
    lead: float = 0.0


@dataclass(frozen=True)
class Plan:
    """Slots to encode, to read with, and to draw from, if they have read everything by then; or `wait` seconds (None:
    for something to happen).
    """

    encode: tuple[int, ...] = ()
    read: tuple[int, ...] = ()
    draw: tuple[int, ...] = ()
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
    readers = sorted((n for n in needs if n.unread or n.sound), key=lambda n: (not n.replying, n.unread, n.slot))
    long = [need.slot for need in readers if need.unread > 1]  # those who wait for an answer first, then the shortest
    put_off = set(long[config.pieces :])
    return Plan(
        encode=tuple(need.slot for need in needs if need.sound),
        read=tuple(sorted(need.slot for need in readers if need.slot not in put_off)),
        draw=tuple(need.slot for need in needs if need.replying and need.lead < config.lead),
    )


def _time_left(need: Need, config: EngineConfig) -> float:
    """Seconds until this slot makes a step necessary."""
    if need.replying:
        settled = not (need.sound or need.unread)
        return max(0.0, need.lead - (config.lead - PATCH)) if settled and need.lead > 0 else 0.0
    if need.unread:
        return 0.0
    return max(0.0, config.patience - need.waited)
