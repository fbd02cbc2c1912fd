"""Checkpoints: names, atomic writes, and tensors that must fit."""

import json
import os
import stat
from pathlib import Path

import pytest
import torch
from torch import nn

from speechgpt2 import hub
from speechgpt2.errors import UserError


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """No test may download anything, and the cache is empty."""

    def refuse(*args, **kwargs):
        from huggingface_hub.errors import LocalEntryNotFoundError

        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def assets(monkeypatch, tmp_path):
    folder = tmp_path / "assets"
    (folder / "mini").mkdir(parents=True)
    (folder / "mini" / "codec.json").write_text("{}")
    monkeypatch.setattr(hub, "ASSETS", folder)
    return folder


def test_resolve_finds_built_in_names_and_folders(assets, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "lm.json").write_text("{}")
    assert hub.built_in() == ["mini"]
    assert hub.resolve("mini", "codec.json") == assets / "mini" / "codec.json"
    assert hub.resolve(tmp_path / "mine", "lm.json") == tmp_path / "mine" / "lm.json"
    assert hub.resolve("mine", "lm.json") == Path("mine/lm.json")
    assert hub.resolve("mine", "codec.json", "lm.json") == Path("mine/lm.json")


def test_built_in_name_goes_before_a_folder(assets, tmp_path):
    (tmp_path / "mini").mkdir()
    (tmp_path / "mini" / "codec.json").write_text("{}")
    assert hub.resolve("mini", "codec.json") == assets / "mini" / "codec.json"
    assert hub.resolve("./mini", "codec.json") == Path("mini/codec.json")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "no such folder or built-in model"),
        ("mini", "holds no lm.json"),
        ("file", "a file, where a folder"),
        ("here/typo", "no such folder or built-in model"),  # `here` exists: a local path, not a repository
        ("/nowhere/at/all", "no such folder or built-in model"),
        ("owner/name", "Hugging Face cannot be reached"),
    ],
)
def test_resolve_errors_are_one_line(assets, tmp_path, name, message):
    (tmp_path / "file").write_text("")
    (tmp_path / "here").mkdir()
    with pytest.raises(UserError, match=message) as caught:
        hub.resolve(name, "lm.json")
    assert "\n" not in str(caught.value)


def test_repository_is_downloaded_once(monkeypatch, tmp_path, capsys):
    calls = []

    def download(repo, allow_patterns, local_files_only=False):
        calls.append(local_files_only)
        if not local_files_only:
            (tmp_path / "lm.json").write_text("{}")
            (tmp_path / "lm.safetensors").write_text("")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert hub.resolve("owner/name", "lm.json") == tmp_path / "lm.json"
    assert "downloading owner/name" in capsys.readouterr().err
    assert hub.resolve("owner/name", "lm.json") == tmp_path / "lm.json"
    assert capsys.readouterr().err == ""
    assert calls == [True, False, True]


def test_write_replaces_the_file_and_respects_umask(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text("old")
    before = os.umask(0o022)
    try:
        hub.write_atomically(path, lambda scratch: scratch.write_text("new"))
    finally:
        os.umask(before)
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failure", [ValueError("no"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_failed_write_keeps_the_old_file(tmp_path, failure):
    path = tmp_path / "out.txt"
    path.write_text("old")

    def write(scratch):
        scratch.write_text("half")
        raise failure

    with pytest.raises((UserError, type(failure))):
        hub.write_atomically(path, write)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_write_follows_links_and_keeps_devices(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    hub.write_atomically(link, lambda scratch: scratch.write_text("new"))
    assert link.is_symlink() and target.read_text() == "new"
    hub.write_atomically("/dev/null", lambda scratch: scratch.write_text("gone"))
    assert not Path("/dev/null").is_file()


@pytest.mark.parametrize("path", ["absent/out.txt", "."])
def test_unwritable_paths_are_refused(path):
    with pytest.raises(UserError, match="cannot write"):
        hub.write_atomically(path, lambda scratch: scratch.write_text("x"))


def test_tensors_round_trip(tmp_path):
    tensors = {"a": torch.arange(6).view(2, 3).t(), "b": torch.randn(4, dtype=torch.bfloat16)}
    path = tmp_path / "x.safetensors"
    hub.save_tensors(path, tensors, {"licence": "Apache-2.0"})
    loaded = hub.load_tensors(path)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    assert hub.list_tensors(path) == {"a": ("I64", (3, 2)), "b": ("BF16", (4,))}
    plain = tmp_path / "plain.txt"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode  # everyone who may read other files may read this one


@pytest.mark.parametrize("read", [hub.load_tensors, hub.list_tensors])
@pytest.mark.parametrize("damage", ["absent", "folder", "empty", "noise", "cut"])
def test_damaged_tensor_files_are_refused(tmp_path, read, damage):
    path = tmp_path / "x.safetensors"
    hub.save_tensors(path, {"a": torch.zeros(100)})
    whole = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "absent":
        path.write_bytes({"empty": b"", "noise": b"\xff" * 64, "cut": whole[:-8]}[damage])
    with pytest.raises(UserError, match=r"x\.safetensors") as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_load_into_refuses_what_does_not_fit():
    module, wanted = nn.Linear(3, 2), nn.Linear(3, 2)
    hub.load_into(module, wanted.state_dict(), "test")
    assert torch.equal(module.weight, wanted.weight)

    tensors = {"weight": torch.zeros(2, 4), "extra": torch.zeros(1)}
    with pytest.raises(UserError) as caught:
        hub.load_into(module, tensors, "test")
    text = str(caught.value)
    assert text.startswith("test: ") and "\n" not in text
    assert "lacks bias" in text and "unknown extra" in text and "weight is [2, 4], not [2, 3]" in text
    assert torch.equal(module.weight, wanted.weight)


def test_load_into_can_adopt_tensors_with_their_dtype():
    module, wanted = nn.Linear(3, 2), {k: v.bfloat16() for k, v in nn.Linear(3, 2).state_dict().items()}
    hub.load_into(module, wanted, "test", adopt=True)
    assert module.weight.dtype == torch.bfloat16 and module.weight.data_ptr() == wanted["weight"].data_ptr()


def test_stored_tensors_are_read_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "BLOCK_BYTES", 40)
    tensors = {"a": torch.randn(7, 5), "b": torch.randn(3, dtype=torch.bfloat16), "c": torch.zeros(0, 2)}
    hub.save_tensors(tmp_path / "x.safetensors", tensors)
    stored = hub.open_tensors(tmp_path / "x.safetensors")
    for name, tensor in tensors.items():
        place = torch.empty_like(tensor, dtype=torch.float32)
        hub.copy_into(place, stored[name])
        assert stored[name].shape == tensor.shape and torch.equal(place, tensor.float())
    (tmp_path / "x.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="cut short"):
        hub.copy_into(torch.empty(7, 5), stored["a"])


def test_interrupted_download_is_resumed(monkeypatch, tmp_path):
    calls = []
    (tmp_path / "config.json").write_text("{}")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model-1.safetensors").write_text("")

    def download(repo, allow_patterns, local_files_only=False):
        calls.append(local_files_only)
        if not local_files_only:
            (tmp_path / "model-2.safetensors").write_text("")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert hub.resolve("owner/name", "config.json") == tmp_path / "config.json"
    assert calls == [True, False]


def test_long_error_lists_are_counted():
    with pytest.raises(UserError, match="and 7 more"):
        hub.load_into(nn.Sequential(*(nn.Linear(1, 1) for _ in range(5))), {}, "test")


def test_damaged_tokenizers_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        hub.load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{]")
    with pytest.raises(UserError, match="not a tokenizer"):
        hub.load_tokenizer(tmp_path)
