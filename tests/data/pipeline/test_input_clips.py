"""Intake: folders and manifests in a stable order; names and lines that are traps become rejected clips."""

from __future__ import annotations

import json
import os

import pytest

from speechgpt2.data.pipeline import input_clips
from speechgpt2.data.pipeline.results import Results
from speechgpt2.data.record import Clip
from speechgpt2.errors import UserError


@pytest.fixture
def results(tmp_path):
    made = Results(tmp_path / "work" / "results.db")
    yield made
    made.close()


def refusals(clips: list[Clip]) -> list[str]:
    return [clip.rejection.reason if clip.rejection else "" for clip in clips]


def test_folder_gives_a_clip_per_file(tmp_path, results):
    root = tmp_path / "in"
    (root / "b").mkdir(parents=True)
    for name, data in {"b/x.wav": b"1", "a é.mp3": b"2", "a é.txt": "说话".encode(), ".hidden.wav": b"3"}.items():
        (root / name).write_bytes(data)
    clips = list(input_clips.read(root, results))
    assert [clip.audio.path for clip in clips] == ["a é.mp3", "b/x.wav"]
    assert clips[0].text.raw == "说话" and clips[0].source.sha256 and clips[0].id.startswith("a-")
    assert all(input_clips.SAFE_ID.fullmatch(clip.id) for clip in clips)


def test_file_is_read_again_only_if_it_changed(tmp_path, results, monkeypatch):
    root = tmp_path / "in"
    root.mkdir()
    (root / "a.wav").write_bytes(b"1")
    [first] = input_clips.read(root, results)
    monkeypatch.setattr(Results, "store_file_hash", lambda *_: pytest.fail("read again"))
    assert list(input_clips.read(root, results)) == [first]


def test_hostile_file_names(tmp_path, results):
    root = tmp_path / "in"
    root.mkdir()
    (tmp_path / "secret.wav").write_bytes(b"secret")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "x.wav").write_bytes(b"x")
    with open(os.fsencode(root) + b"/caf\xe9.wav", "wb") as file:
        file.write(b"1")
    (root / "text.wav").write_bytes(b"1")
    (root / "text.txt").write_bytes(b"\xff\xfe\x00")
    (root / "loop").symlink_to(root)
    os.mkfifo(root / "pipe.wav")
    assert refusals(list(input_clips.read(root, results))) == ["name", "text"]


def test_hostile_manifest(tmp_path, results):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "ok.wav").write_bytes(b"1")
    (tmp_path / "secret.wav").write_bytes(b"secret")
    os.mkfifo(tmp_path / "in" / "pipe")
    lines = [
        {"id": "ok", "audio": {"path": "ok.wav"}}, {"id": "up", "audio": {"path": "../secret.wav"}},
        {"id": "root", "audio": {"path": "/etc/passwd"}}, {"id": "zero", "audio": {"path": "a\0b"}},
        {"id": "pipe", "audio": {"path": "pipe"}}, {"id": "absent", "audio": {"path": "absent.wav"}},
        {"id": "../../evil", "audio": {"path": "ok.wav"}}, {"id": "ok", "audio": {"path": "ok.wav"}},
        {"id": "strange", "colour": "red"}, {"id": "none"}, {"id": "half\ud800", "audio": {"path": "ok.wav"}},
        {"id": "nan", "quality": {"snr": float("nan")}},
    ]  # fmt: skip
    text = "".join(json.dumps(line) + "\n" for line in lines).encode() + b"\xff\xfe\n\n{\n"
    (tmp_path / "in" / "manifest.jsonl").write_bytes(text)
    clips = list(input_clips.read(tmp_path / "in" / "manifest.jsonl", results))
    assert refusals(clips) == [
        "", "path", "path", "path", "unreadable", "unreadable", "", "id-twice", "manifest", "path",
        "manifest", "manifest", "manifest", "manifest",
    ]  # fmt: skip
    assert len({clip.id for clip in clips}) == len(clips)
    assert all(input_clips.SAFE_ID.fullmatch(clip.id) for clip in clips)
    assert all(clip == Clip.from_json(clip.to_json()) for clip in clips)


def test_missing_source_is_a_user_error(tmp_path, results):
    with pytest.raises(UserError, match="no such folder or manifest"):
        list(input_clips.read(tmp_path / "absent", results))
