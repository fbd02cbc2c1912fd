"""How an engine is sized and paced."""

from __future__ import annotations

from dataclasses import dataclass

from speechgpt2.errors import UserError


@dataclass(frozen=True)
class EngineConfig:
    """`slots` sessions at once, each remembering `context` patches (120 ms of speech or a piece of text).

    `lead`: seconds that speech may be ahead of its playback; more rides out slower steps, less is wasted by an
    interruption. `piece`: patches that one row reads at once, `pieces`: of them in a step, so that no step is long.
    `patience`: seconds that a listener's sound may wait to share a step with others. `codec_process`: the codec
    computes in a process of its own, which pays with more than one processor; a program that asks for it is one whose
    main module can be imported (see `multiprocessing`'s spawn).
    """

    slots: int = 8
    context: int = 1024
    lead: float = 0.6
    piece: int = 32
    pieces: int = 4
    patience: float = 0.06
    codec_process: bool = False

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise UserError(f"slots must be at least 1, not {self.slots}")
        if self.context < 128:
            raise UserError(f"context must be at least 128 patches, not {self.context}")
        if self.lead < 0.12 or self.patience < 0:
            raise UserError("lead must be at least 0.12 s, and patience not negative")
        if self.piece < 2 or self.pieces < 1:
            raise UserError("a piece holds at least 2 patches, and a step at least 1 piece")
