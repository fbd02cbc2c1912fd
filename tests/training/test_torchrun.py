"""Several processes with shards under `torchrun`: losses of one process, killed processes, other numbers of them."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import needs
from tests.training.torchrun_worker import STAGE, work

pytestmark = [pytest.mark.slow, needs.condition(hasattr(signal, "SIGKILL"), "the system has no SIGKILL")]
ROOT = Path(__file__).parent.parent.parent
STEPS, ROWS = 12, 4
NAMES = ("text", "codes", "grad_norm")


def torchrun(processes, folder, *kill):
    """Train in so many processes, and return the exit code and what they printed."""
    changes = {"rows": ROWS // processes, "steps": STEPS, "sharded": True}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    worker = [str(Path(__file__).parent / "torchrun_worker.py"), str(folder), json.dumps(changes), *kill]
    given = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *worker], env=given, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True)
    return done.returncode, done.stdout


def curve(folder):
    """The last values of each step: a run that goes on repeats the steps after its checkpoint."""
    found = {}
    for line in (folder / "log.jsonl").read_text().splitlines():
        values = json.loads(line)
        found.setdefault(values["step"], {}).update(values)
    return found


def check_equal(ours, theirs, rel):
    assert ours.keys() == theirs.keys() == set(range(STEPS + 1))
    for step, values in ours.items():
        for name in values.keys() - {"steps_per_second"}:
            if name in NAMES or name.startswith("held_out"):
                assert theirs[step][name] == pytest.approx(values[name], rel=rel), (step, name)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("speechgpt2.lm.train.has_fast_bf16", lambda device: False)
        work(folder, {"rows": ROWS, "steps": STEPS})
    return curve(folder)


def test_two_and_four_processes_give_the_losses_of_one(alone, tmp_path):
    assert STAGE.accumulate == 1
    for processes in (2, 4):
        folder = tmp_path / str(processes)
        code, said = torchrun(processes, folder)
        assert code == 0, said
        assert len(list((folder / "checkpoint").glob("*.distcp"))) == processes
        check_equal(alone, curve(folder), 2e-4)


# Processes, the one that dies, when, and the processes that go on.
@pytest.mark.parametrize(
    "processes, rank, moment, number, later",
    [(2, 1, "drawing", 10, 2), (2, 0, "updating", 7, 4), (4, 2, "drawing", 6, 4), (2, 1, "saving", 2, 1)],
)
def test_a_killed_run_goes_on_to_the_same_losses(alone, tmp_path, processes, rank, moment, number, later):
    code, said = torchrun(processes, tmp_path, str(rank), moment, str(number))
    assert code != 0 and "exitcode  : -9" in said, said
    assert 4 <= max(curve(tmp_path)) < STEPS
    code, said = torchrun(later, tmp_path)
    assert code == 0, said
    check_equal(alone, curve(tmp_path), 2e-4)
