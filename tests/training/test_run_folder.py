"""A run's folder: damaged checkpoints, two runs at once, changed settings, gradients that are not finite."""

import errno
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace

import pytest
import torch

from speechgpt2.errors import UserError
from speechgpt2.training.run import RunFolder, train
from speechgpt2.training.validation import ValidationConfig


@dataclass(frozen=True)
class Config:
    steps: int = 6
    report_every: int = 2
    save_every: int = 2
    peak_lr: float = 0.1
    seed: int = 0
    validation: ValidationConfig = field(default_factory=lambda: ValidationConfig(every=0))


class Slope:
    """A weight that falls by 1 at each step; at step `broken` the loss is NaN."""

    def __init__(self, broken=None, size=1):
        self.weight = torch.nn.Parameter(torch.zeros(size))
        self.optimizer = torch.optim.SGD([self.weight], lr=1.0)
        self.broken = broken

    def step(self, step):
        loss = self.weight.sum() * (float("nan") if step == self.broken else 1.0)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss}

    def content(self, step):
        return {"step": step, "weight": self.weight.detach()}

    def restore(self, content):
        if content is None:
            return 0
        torch.nn.ParameterList([self.weight]).load_state_dict({"0": content["weight"]})
        return content["step"]

    def validate(self):
        return {}

    def export(self, folder):
        pass

    def log_samples(self, run, step):
        pass


def test_a_loss_that_is_not_finite_stops_the_run_before_the_step(tmp_path):
    trainer = Slope(broken=3)
    with pytest.raises(UserError, match=r"step 4: the gradient is not finite.*checkpoint\.pt.*--resume"):
        train(trainer, Config(), tmp_path, False, "slope")
    assert trainer.weight.item() == -3
    assert torch.load(tmp_path / "checkpoint.pt")["step"] == 2
    resumed = Slope()
    train(resumed, Config(), tmp_path, True, "slope")
    assert resumed.weight.item() == -6


def test_a_damaged_checkpoint_is_one_line_and_the_one_before_is_used(tmp_path, capsys):
    train(Slope(), Config(), tmp_path, False, "slope")
    whole = (tmp_path / "checkpoint.pt").read_bytes()
    for damaged in (b"", whole[:100], b"no checkpoint"):
        (tmp_path / "checkpoint.pt").write_bytes(damaged)
        assert RunFolder(tmp_path, True).checkpoints.load()["step"] == 4
        assert "checkpoint.pt is damaged" in capsys.readouterr().err
    (tmp_path / "checkpoint-old.pt").write_bytes(b"")
    with pytest.raises(UserError, match="no checkpoint can be read"):
        train(Slope(), Config(), tmp_path, True, "slope")


def test_a_damaged_checkpoint_does_not_replace_the_good_one_before(tmp_path):
    train(Slope(), Config(), tmp_path, False, "slope")
    (tmp_path / "checkpoint.pt").write_bytes(b"")
    checkpoints = RunFolder(tmp_path, True).checkpoints
    assert checkpoints.load()["step"] == 4
    for new, old in ((5, 4), (6, 5), (7, 6)):
        checkpoints.save({"step": new})
        assert [torch.load(path)["step"] for path in checkpoints.found] == [new, old]


def test_an_interruption_between_the_two_files_loses_nothing(tmp_path):
    train(Slope(), Config(), tmp_path, False, "slope")
    (tmp_path / "checkpoint.pt").unlink()
    with pytest.raises(UserError, match="already holds a run"):
        RunFolder(tmp_path, False)
    resumed = Slope()
    train(resumed, Config(), tmp_path, True, "slope")
    assert resumed.weight.item() == -6


def test_two_runs_in_one_folder_are_refused(tmp_path):
    code = (
        "import sys, time; from speechgpt2.training.run import RunFolder\n"
        "with RunFolder(sys.argv[1], True).locked():\n    print('locked', flush=True); time.sleep(600)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match="another process trains in"):
            train(Slope(), Config(), tmp_path, False, "slope")
    finally:
        other.kill()
        other.wait()
    end = time.monotonic() + 20
    while True:  # the lock ends with the process
        try:
            train(Slope(), Config(), tmp_path, False, "slope")
            break
        except UserError:
            assert time.monotonic() < end
            time.sleep(0.1)


def test_changed_settings_are_said(tmp_path, capsys):
    train(Slope(), Config(steps=2), tmp_path, False, "slope")
    capsys.readouterr()
    train(Slope(), replace(Config(), peak_lr=0.05, seed=1), tmp_path, True, "slope")
    said = capsys.readouterr().err
    assert "from step 2 on, peak_lr is 0.05 (it was 0.1)" in said and "seed is 1 (it was 0)" in said
    assert "steps is 6 (it was 2)" in said and "save_every is" not in said


def test_another_size_is_refused_and_changes_nothing(tmp_path):
    train(Slope(), Config(steps=2), tmp_path, False, "slope")
    before = (tmp_path / "config.yaml").read_text()
    with pytest.raises(UserError, match="does not fit this configuration"):
        train(Slope(size=3), replace(Config(), seed=9), tmp_path, True, "slope")
    assert (tmp_path / "config.yaml").read_text() == before


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    train(Slope(), Config(steps=2), tmp_path, False, "slope")

    def full(content, file):
        file.write(b"part")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"No space left.*the last good checkpoint is .*checkpoint\.pt"):
        train(Slope(), Config(), tmp_path, True, "slope")
    assert torch.load(tmp_path / "checkpoint.pt")["step"] == 2 and not (tmp_path / "checkpoint.tmp").exists()
