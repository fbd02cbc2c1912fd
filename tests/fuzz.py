"""Runs the fuzz tests for a given time, round after round with new seeds, and counts cases and failures.

python -m tests.fuzz --minutes 60 --out runs/fuzz      # Ctrl-C ends it early, with the same table
python -m tests.fuzz --first-seed 400                  # other cases than a run from seed 0

The first failing input of each target is written to OUT/TARGET.txt, with its seed and traceback. Decoders of audio
print warnings of their own on stderr.
"""

import argparse
import inspect
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType, SimpleNamespace
from typing import Any

CASES_A_ROUND = 200


@dataclass
class Target:
    """A fuzz test, and how its cases went.

    Attributes:
        name: what it tests.
        test: the test, as Hypothesis wrapped it.
        fixtures: the fixtures that it takes.
        out: the folder for failing inputs.
    """

    name: str
    test: Callable[..., None]
    fixtures: dict[str, Any]
    out: Path
    cases: int = 0
    failures: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        self.inner = self.test.hypothesis.inner_test
        self.test.hypothesis.inner_test = self._count

    def run(self, seed: int) -> None:
        """Run the cases of one seed."""
        from hypothesis import seed as seeded

        self.seed = seed
        seeded(seed)(self.test)(**self.fixtures)

    def _count(self, *args: Any, **given: Any) -> None:
        """Run one case. A failure is counted, and the round goes on: nothing is spent on shrinking its input."""
        self.cases += 1
        try:
            self.inner(*args, **given)
        except Exception:
            self.failures += 1
            if self.failures == 1:
                self._save(args, given)

    def _save(self, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        values = [*args, *(value for name, value in given.items() if name not in self.fixtures)]
        path = self.out / f"{self.name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [f"seed {self.seed}", *(f"input {value!a}" for value in values), traceback.format_exc()]
        path.write_text("\n".join(lines), encoding="utf-8", errors="backslashreplace")
        print(f"{self.name}: a case failed, see {path}", flush=True)


def targets(module: ModuleType, temporary: Path, out: Path) -> list[Target]:
    """The fuzz tests of a module."""
    fixtures = {"tmp_path_factory": SimpleNamespace(getbasetemp=lambda: temporary)}
    found = [(name, test) for name, test in vars(module).items() if hasattr(test, "hypothesis")]
    return [
        Target(
            name.removeprefix("test_"),
            test,
            {key: fixtures[key] for key in inspect.signature(test).parameters},
            out,
        )
        for name, test in found
    ]


def rounds(fuzzed: list[Target], minutes: float, first_seed: int) -> Iterator[int]:
    """Run every target with one seed after another until the time is over. Yields the number of each round."""
    end = time.monotonic() + 60 * minutes
    seed = first_seed
    while True:
        for target in fuzzed:
            if time.monotonic() >= end:
                return
            target.run(seed)
        seed += 1
        yield seed - first_seed


def table(fuzzed: list[Target]) -> str:
    """The counts of each target and of all, in columns."""
    rows = [(target.name, target.cases, target.failures) for target in fuzzed]
    rows += [("all", sum(row[1] for row in rows), sum(row[2] for row in rows))]
    lines = [f"{name:<24}{cases:>12,}{failures:>10,}" for name, cases, failures in rows]
    return "\n".join([f"{'target':<24}{'cases':>12}{'failures':>10}", *lines])


def main(arguments: list[str] | None = None) -> int:
    """Run the targets; returns 1 if a case failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"), help="folder for failing inputs")
    parser.add_argument("--first-seed", type=int, default=0)
    options = parser.parse_args(arguments)
    os.environ.setdefault("SG2_FUZZ_EXAMPLES", str(CASES_A_ROUND))  # read by the module when it is loaded
    from tests import test_fuzz

    with TemporaryDirectory() as temporary:
        return fuzz(targets(test_fuzz, Path(temporary), options.out), options.minutes, options.first_seed)


def fuzz(fuzzed: list[Target], minutes: float, first_seed: int = 0) -> int:
    """Run targets with a line of progress a round, and print the table; returns 1 if a case failed."""
    began = time.monotonic()
    try:
        for number in rounds(fuzzed, minutes, first_seed):
            cases, failures = sum(t.cases for t in fuzzed), sum(t.failures for t in fuzzed)
            spent = (time.monotonic() - began) / 60
            print(f"{spent:.1f}/{minutes:g} min  {number} rounds  {cases:,} cases  {failures:,} failures", flush=True)
    except KeyboardInterrupt:
        print("stopped")
    print(table(fuzzed))
    return 1 if any(target.failures for target in fuzzed) else 0


if __name__ == "__main__":
    sys.exit(main())
