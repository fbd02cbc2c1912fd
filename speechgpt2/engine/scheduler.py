"""Who gets what in the next step. Numbers only: no torch, no sound, no words.

A step does three kinds of work, each at once for all whose turn it is: *encode* a chunk of someone's speech, *feed*
someone's model with a stretch of patches it has not taken in, *step*: take in one patch, drawn or given. Encoding and
stepping are cheap together, so whoever needs them gets them; feeding is rationed, so that a long one (an opening, a
memory that is rebuilt) never holds up those who are speaking, and those who wait for an answer go first.

What is cut off for one session (a chunk, a stretch) depends on that session alone, so that its results do too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from speechgpt2.dialogue.protocol import Full


@dataclass(frozen=True)
class Need:
    """What a session could use now. `frames`: of a chunk ready to be encoded; `backlog`: patches not taken in;
    `waits`: an answer waits for them; `draws`: the next patch of an answer is due.
    """

    slot: int
    frames: int = 0
    backlog: int = 0
    waits: bool = False
    draws: bool = False


@dataclass(frozen=True)
class Plan:
    """One step's work, by slot: frames to encode, patches to feed, and who takes in one patch (true: draws it)."""

    encode: dict[int, int] = field(default_factory=dict)
    feed: dict[int, int] = field(default_factory=dict)
    step: dict[int, bool] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.encode or self.feed or self.step)


class Scheduler:
    """Leases slots and plans steps. `stretch`: patches fed at a time; `ration`: patches fed in a step."""

    def __init__(self, slots: int, stretch: int, ration: int):
        self.slots, self.stretch, self.ration = slots, stretch, ration
        self._free = list(range(slots))
        self._fed = [0] * slots  # the step that last fed each slot
        self._step = 0

    @property
    def used(self) -> int:
        """Slots that are leased."""
        return self.slots - len(self._free)

    def lease(self) -> int:
        """A free slot, the lowest, so that few sessions share few batches. Errors: `Full`."""
        if not self._free:
            raise Full(f"all {self.slots} sessions are taken; try again later")
        slot = min(self._free)
        self._free.remove(slot)
        return slot

    def release(self, slot: int) -> None:
        """Give a slot back."""
        self._free.append(slot)
        self._fed[slot] = 0

    def plan(self, needs: Iterable[Need]) -> Plan:
        """The next step."""
        needs = list(needs)
        self._step += 1
        return Plan(
            encode={need.slot: need.frames for need in needs if need.frames},
            feed=self._rations([need for need in needs if need.backlog > 1]),
            step={
                need.slot: not need.backlog for need in needs if need.backlog == 1 or (need.draws and not need.backlog)
            },
        )

    def _rations(self, needs: list[Need]) -> dict[int, int]:
        """Those who wait for an answer first, then those who were fed longest ago; one at least is fed."""
        left, feed = self.ration, {}
        for need in sorted(needs, key=lambda need: (not need.waits, self._fed[need.slot], need.slot)):
            if left <= 0:
                break
            feed[need.slot] = min(need.backlog, self.stretch)
            left -= feed[need.slot]
            self._fed[need.slot] = self._step
        return feed
