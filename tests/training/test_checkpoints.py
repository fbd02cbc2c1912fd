"""Checkpoints with shards: damaged ones, other sizes, full disks, and the change between shards and whole tensors."""

import json

import pytest
import torch

from speechgpt2.errors import UserError
from speechgpt2.training.checkpoints import PROGRESS, Checkpoints


class Pair:
    """Two tensors and a step."""

    def __init__(self, value=0.0, size=4):
        self.tensors = {"a": torch.full((size, 2), value), "b": torch.tensor(value)}

    def shards(self):
        return self.tensors

    def progress(self, step):
        return {"step": step, "best": float("inf")}

    def save(self, checkpoints, step):
        checkpoints.save_shards(self.shards(), self.progress(step))


@pytest.fixture
def saved(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (2, 4):
        Pair(float(step)).save(checkpoints, step)
    return checkpoints


def test_shards_are_read_into_the_tensors(saved):
    pair = Pair()
    assert saved.load(pair) == {"step": 4, "best": float("inf")}
    assert (pair.tensors["a"] == 4).all() and pair.tensors["b"] == 4
    assert [path.name for path in saved.found] == ["checkpoint", "checkpoint-old"]


@pytest.mark.parametrize("file", ("*.distcp", ".metadata", PROGRESS))
@pytest.mark.parametrize("damage", ("missing", "cut"))
def test_a_damaged_folder_is_one_line_and_the_one_before_is_used(saved, capsys, file, damage):
    (path,) = saved.folder.glob(file)
    path.write_bytes(path.read_bytes()[:-20]) if damage == "cut" else path.unlink()
    pair = Pair()
    assert saved.load(pair)["step"] == 2 and (pair.tensors["a"] == 2).all()
    said = capsys.readouterr().err
    assert said == f"{saved.folder} is damaged\n"
    (saved.older_folder / PROGRESS).unlink()
    with pytest.raises(UserError, match="no checkpoint can be read"):
        saved.load(pair)


@pytest.mark.parametrize("next_is_file", (False, True))
def test_a_damaged_folder_does_not_replace_the_good_one_before(saved, next_is_file):
    (saved.folder / PROGRESS).unlink()
    assert saved.load(Pair())["step"] == 2
    saved.save({"step": 6}) if next_is_file else Pair(6.0).save(saved, 6)
    assert [path.name for path in saved.found] == ["checkpoint.pt" if next_is_file else "checkpoint", "checkpoint-old"]
    assert saved.load(Pair())["step"] == 6
    assert json.loads((saved.older_folder / PROGRESS).read_text())["step"] == 2
    Pair(8.0).save(saved, 8)
    assert saved.load(Pair())["step"] == 8
    assert [path.name for path in saved.found][1] == ("checkpoint-old.pt" if next_is_file else "checkpoint-old")


def test_other_tensors_are_refused_and_nothing_is_changed(saved):
    pair = Pair(size=3)
    with pytest.raises(ValueError, match="other parameters, or other sizes"):
        saved.load(pair)
    pair = Pair()
    pair.tensors["c"] = torch.zeros(1)
    with pytest.raises(ValueError, match="other parameters, or other sizes"):
        saved.load(pair)
    assert not pair.tensors["a"].any()
    with pytest.raises(ValueError, match="sharded run"):
        saved.load(object())


def test_a_run_may_change_between_shards_and_a_file(saved):
    saved.save({"step": 6})
    assert [path.name for path in saved.found] == ["checkpoint.pt", "checkpoint-old"]
    assert saved.load(Pair()) == {"step": 6}
    Pair(8.0).save(saved, 8)
    assert [path.name for path in saved.found] == ["checkpoint", "checkpoint-old.pt"]
    assert saved.load(Pair())["step"] == 8


def test_an_interrupted_save_leaves_the_last_good_checkpoint(saved, monkeypatch):
    import torch.distributed.checkpoint as shards

    def full(*given, **named):
        raise shards.api.CheckpointException("", {1: (OSError(28, "No space left on device"), None)})

    monkeypatch.setattr(shards, "save", full)
    with pytest.raises(UserError, match=r"No space left on device\); the last good checkpoint is .*/checkpoint$"):
        Pair(6.0).save(saved, 6)
    monkeypatch.undo()
    (saved.folder.with_suffix(".tmp")).mkdir(exist_ok=True)  # a process that was killed while it wrote
    (saved.folder.with_suffix(".tmp") / PROGRESS).write_text("{")
    assert saved.load(Pair())["step"] == 4
    Pair(6.0).save(saved, 6)
    assert saved.load(Pair())["step"] == 6 and not saved.folder.with_suffix(".tmp").exists()
    assert json.loads((saved.older_folder / PROGRESS).read_text())["step"] == 4
