"""Validation during training: held-out data every some steps, the best model kept, an optional early end.

    RUN/best/              the model with the best value so far, and `validation.json` with its step and values

The held-out examples are few and always the same, so two values differ by the model only. Validation draws no random
number and leaves every weight as it was: a run takes the same steps with and without it.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from speechgpt2.errors import UserError
from speechgpt2.training import distributed

LOSS = "loss"
HIGHER_IS_BETTER = ("stoi", "pesq")
PREFIX = "held_out/"  # of the names in the log


@dataclass(frozen=True)
class ValidationConfig:
    """When held-out data are evaluated, and what follows."""

    every: int = 250  # steps; 0: never
    examples: int = 0  # held-out examples, of a codec utterances; 0: 64 examples, or 16 utterances
    by: str = LOSS  # the value that decides what is best: the lowest loss, or another value by its name
    keep_best: bool = True  # RUN/best holds the best model
    patience: int = 0  # the run ends after so many validations without a better value; 0: never
    asr: str = ""  # of a codec: a recogniser that transcribes the decoded speech, as in `sg2 eval codec --asr`

    def __post_init__(self) -> None:
        if min(self.every, self.patience, self.examples) < 0:
            raise UserError("every, examples and patience must be at least 0")


class Validated(Protocol):
    """The part of a trainer that validation uses."""

    def validate(self) -> dict[str, float]:
        """Return the values of the held-out data, or nothing if there are none. All processes call it."""
        ...

    def export(self, folder: Path) -> None:
        """Write the present model."""
        ...


class Log(Protocol):
    """The part of a run's folder that validation uses."""

    folder: Path
    leads: bool

    def report(self, step: int, values: dict[str, float]) -> None:
        """Log scalars of one step."""
        ...


@dataclass
class Best:
    """The best value so far, its step, and how many validations have passed since. It is part of a checkpoint."""

    value: float = math.inf
    step: int = 0
    since: int = 0
    values: dict[str, float] = field(default_factory=dict)


class Validation:
    """Validates a trainer when it is due.

    Args:
        config: When, and what follows.
        trainer: What is validated.
        run: Where values are logged and the best model is kept.
        what: Name of the run in reports.
    """

    def __init__(self, config: ValidationConfig, trainer: Validated, run: Log, what: str):
        self.config, self.trainer, self.run, self.what = config, trainer, run, what
        self.best = Best()

    def content(self) -> dict[str, Any]:
        """Return what the next validation depends on."""
        return vars(self.best) | {"values": dict(self.best.values)}

    def restore(self, content: dict[str, Any] | None) -> None:
        """Restore what `content` returned. An older checkpoint has none."""
        if content:
            self.best = Best(**content)

    def is_due(self, step: int, steps: int) -> bool:
        """Return whether the model is validated after `step` of `steps` steps."""
        return bool(self.config.every) and (step % self.config.every == 0 or step == steps)

    @property
    def has_ended(self) -> bool:
        """Whether the run ends early. It is the same in all processes."""
        return 0 < self.config.patience <= self.best.since

    def evaluate(self, step: int) -> None:
        """Validate after `step` steps; the model of step 0 is measured, but not kept.

        Raises:
            UserError: If there is no value of the name that the configuration gives.
        """
        values = self.trainer.validate()
        if not values:
            return
        if self.config.by not in values:
            raise UserError(f"validation.by: there is no '{self.config.by}'; the values are {', '.join(values)}")
        if step:
            self._compare(step, values)
        if self.run.leads:
            self.run.report(step, {PREFIX + name: value for name, value in values.items()})
            self._print(step, values)

    def _compare(self, step: int, values: dict[str, float]) -> None:
        sign = -1 if self.config.by in HIGHER_IS_BETTER else 1
        value = distributed.from_leader(sign * values[self.config.by])
        if not value < self.best.value:
            self.best.since += 1
            return
        self.best = Best(value, step, 0, values)
        if self.config.keep_best:
            self._keep(step, values)

    def _keep(self, step: int, values: dict[str, float]) -> None:
        folder = self.run.folder / "best"
        if self.run.leads:
            folder.mkdir(parents=True, exist_ok=True)
        if takes_part(self.trainer):
            self.trainer.export(folder)
        if self.run.leads:
            (folder / "validation.json").write_text(json.dumps({"step": step, **values}, indent=1) + "\n")

    def _print(self, step: int, values: dict[str, float]) -> None:
        main = " ".join(f"{name} {value:.3f}" for name, value in values.items() if "/" not in name)
        best = f"; best: step {self.best.step}" if step else ""
        print(f"{self.what} {step} held out: {main}{best}", file=sys.stderr, flush=True)

    def say_end(self, step: int) -> None:
        """Say why the run ends early."""
        kept = f", kept in {self.run.folder / 'best'}" if self.config.keep_best else ""
        if self.run.leads:
            print(
                f"{self.what} ends at step {step}: {self.best.since} validations without a better {self.config.by} "
                f"than at step {self.best.step}{kept}; go on with --resume and a larger validation.patience",
                file=sys.stderr,
            )


def takes_part(trainer: object) -> bool:
    """Return whether this process saves and exports: the first one, or all that hold shards, which are gathered."""
    return distributed.rank() == 0 or getattr(trainer, "is_sharded", False)
