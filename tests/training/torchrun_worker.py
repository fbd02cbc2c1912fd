"""What `torchrun` starts in the tests: a tiny run, in which a process may be killed.

torchrun … tests/training/torchrun_worker.py RUN '{"rows": 2, "steps": 12}' [RANK drawing|updating|saving NUMBER]
"""

import json
import os
import signal
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from speechgpt2.lm.train import LMTrainer, train
from speechgpt2.training import checkpoints, distributed
from speechgpt2.training.validation import ValidationConfig
from tests.training import test_stages, test_validation

STAGE = replace(
    test_stages.STAGE, save_every=4, report_every=1, average=0.9, validation=ValidationConfig(every=3), dropout=0.0
)
# Where a process dies: while it draws the data of a step, between the backward pass and the update, or after it has
# written its shards and before the checkpoint is in place.
MOMENTS = {
    "drawing": (LMTrainer, "batches"),
    "updating": (torch.optim.AdamW, "step"),
    "saving": (checkpoints, "_write_shards"),
}


def die_at(moment: str, number: int) -> None:
    """Let this process kill itself at such a moment, the first of which is 1."""
    owner, name = MOMENTS[moment]
    function, calls = getattr(owner, name), []

    def counted(*given: object, **named: object) -> object:
        calls.append(moment)
        is_last = len(calls) == number
        if is_last and moment != "saving":
            os.kill(os.getpid(), signal.SIGKILL)
        done = function(*given, **named)
        if is_last:
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    setattr(owner, name, counted)


def work(folder: Path, changes: dict, kill: tuple[str, str, str] | None = None) -> None:
    lm = test_stages.model()
    config = test_stages.in_float32(replace(STAGE, **changes))
    if kill and int(kill[0]) == distributed.rank():
        die_at(kill[1], int(kill[2]))
    source = test_stages.Numbers(lm.prompt)
    train(config, lm, source, str(folder), resume=True, held_out=test_validation.held_out(lm.prompt))


if __name__ == "__main__":
    folder, changes, *kill = sys.argv[1:]
    distributed.launch(1, partial(work, Path(folder), json.loads(changes), tuple(kill) or None))
