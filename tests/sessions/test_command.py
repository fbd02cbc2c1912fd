"""`sg2 chat --sessions` and `sg2 sessions`, with a model of random weights."""

import json
import re
from pathlib import Path

import pytest

from speechgpt2 import audio
from tests.command_line import fails, sg2
from tests.engine.tiny import noise, tiny_codec, tiny_lm

MODEL = ["--model", "tiny", "--device", "cpu", "--max-patches", "12"]
SESSIONS = ["--sessions", "talks"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_codec().save_pretrained(folder)
    tiny_lm(chain_of_modality=True).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def workdir(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").symlink_to(tiny)
    audio.save("in.wav", noise(0.5))


def test_conversation_is_saved_resumed_exported_replayed_and_deleted():
    first = sg2("chat", "in.wav", "-t", "Hello", *SESSIONS, *MODEL)
    id = re.fullmatch(r"session: (sess_[0-9a-f]+)", first.stderr.splitlines()[-1])[1]
    assert sg2("sessions", "list", *SESSIONS).stdout.startswith(f"{id}\t")
    sg2("chat", "-t", "what is the weather like?", *SESSIONS, "--resume", id, *MODEL)
    shown = sg2("sessions", "show", id, *SESSIONS).stdout
    assert "6 turns, 0 of them forgotten" in shown and "user: what is the weather like?" in shown
    assert "user (1.0 s)" in shown

    sg2("sessions", "export", id, *SESSIONS, "-o", "out")
    [line] = Path("out/dialogues.jsonl").read_text("utf-8").splitlines()
    messages = json.loads(line)["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"] * 3
    assert len(audio.load(Path("out") / messages[0]["audio"])) == 24 * 960  # with the silence that ends a turn

    replayed = sg2("sessions", "replay", id, *SESSIONS, "--device", "cpu").stdout
    assert replayed.splitlines()[-1] == "3 same, 0 different, 0 unknown"
    sg2("sessions", "delete", id, *SESSIONS)
    assert "no saved session" in fails("sessions", "show", id, *SESSIONS)


def test_list_on_a_terminal_is_whole_at_80_columns(monkeypatch):
    sg2("chat", "-t", "What is the weather like today?", *SESSIONS, *MODEL)
    id, time, *_ = sg2("sessions", "list", *SESSIONS).stdout.split("\t")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    lines = re.sub(r"\x1b\[[0-9;]*m", "", sg2("sessions", "list", *SESSIONS).stdout).splitlines()
    assert any(id in line and time in line for line in lines) and max(map(len, lines)) <= 80


def test_errors_of_saved_sessions():
    assert "--resume needs --sessions" in fails("chat", "-t", "Hello", "--resume", "sess_1", *MODEL)
    assert "no saved session 'sess_1' in talks" in fails("chat", "-t", "Hello", *SESSIONS, "--resume", "sess_1", *MODEL)
    line = fails("chat", "-t", "Hello", *SESSIONS, "--resume", "sess_1", "--voice", "anna", *MODEL)
    assert "leave out --voice" in line
    line = fails("chat", "-t", "Hello", *SESSIONS, "--resume", "sess_1", "--speed", "2", *MODEL)
    assert "leave out --speed" in line
    assert "no such folder" in fails("sessions", "list", *SESSIONS)
    Path("talks").mkdir()
    Path("talks/sess_1.jsonl").write_text("nonsense\n")
    assert "line 1: damaged" in fails("sessions", "show", "sess_1", *SESSIONS)
    assert "line 1: damaged" in sg2("sessions", "list", *SESSIONS).stderr
