"""A session's file: what is written is read, and what is damaged is named."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from speechgpt2.errors import UserError
from speechgpt2.sessions.entries import (
    Header,
    PatchBlock,
    Removed,
    ReplyInfo,
    Settings,
    SystemBlock,
    TurnBlock,
    WireItem,
    WireItemRemoved,
)
from speechgpt2.sessions.session_file import SessionFile, read_entries, read_session, to_line
from speechgpt2.sessions.store import SessionFolder, SessionNotFound
from speechgpt2.types import ToolCall

NO_SPEECH = 1024


def header(id="sess_1", owner="key-1"):
    return Header(id, "engine", "tiny", "a", "b", owner, time.time(), 3, 3, NO_SPEECH)


def block(seed=0, patches=20):
    """Text with two stretches of speech in it."""
    random = np.random.default_rng(seed)
    codes = random.integers(0, NO_SPEECH, (patches, 3, 3))
    codes[np.isin(np.arange(patches), [0, 1, 9, 10, patches - 1])] = NO_SPEECH
    return PatchBlock(random.integers(0, 150_000, patches), codes, random.random(patches) < 0.5)


def turn(number, role="user", **fields):
    return TurnBlock(number, role, block(number), at=time.time(), **fields)


REPLY = ReplyInfo({"speak": False}, "interrupted", "c0ffee", 2, block(7))
ENTRIES = [
    Settings({"seed": 3, "tools": []}),
    SystemBlock("s2s", block(1, 3)),
    turn(1, separator=1, speech_offset=4, user_spoke=True),
    turn(2, "assistant", text="eight — 八", transcript="what?", calls=(ToolCall("lamp", "{}"),), reply=REPLY),
    WireItem({"id": "item_1", "type": "message"}, None, 1),
]


@pytest.fixture
def path(tmp_path):
    file = SessionFolder(tmp_path).create(header())
    for entry in ENTRIES:
        file.write(entry)
    file.close()
    return tmp_path / "sess_1.jsonl"


def test_entries_are_read_as_written(path):
    saved = read_session(path)
    assert saved.settings == {"seed": 3, "tools": []} and saved.items["item_1"].turn == 1
    question, answer = saved.remembered
    assert (question.separator, question.speech_offset, question.user_spoke) == (1, 4, True)
    assert answer.calls == (ToolCall("lamp", "{}"),) and answer.text == "eight — 八"
    assert question.patches.same(block(1)) and answer.reply.generated.same(block(7))
    assert len(question.speech(NO_SPEECH)) == 3 * 15
    assert saved.context.text.shape == (43,) and not saved.incomplete
    assert path.stat().st_mode & 0o077 == 0


def test_session_is_read_without_patches(path):
    whole, light = read_session(path), read_session(path, with_patches=False)
    assert light.items == whole.items and light.updated_at == whole.updated_at
    assert [(turn.role, turn.text) for turn in light.remembered] == [
        (turn.role, turn.text) for turn in whole.remembered
    ]
    assert not any(len(turn.patches) for turn in light.remembered) and light.remembered[1].reply.generated is None


def test_later_lines_replace_earlier_ones(path):
    file, saved = SessionFolder(path.parent).resume("sess_1")
    file.write(turn(3))
    file.write(Removed((1,), deleted=False))
    file.write(TurnBlock(2, "assistant", block(9)))
    file.write(WireItemRemoved("item_1"))
    saved = read_session(path)
    assert [t.number for t in saved.remembered] == [2, 3] and saved.turns.keys() == {1, 2, 3} and not saved.items
    assert saved.turns[2].patches.same(block(9)) and saved.last_number == 3
    file.write(Removed((1, 2), deleted=True))
    file.close()
    left = path.read_bytes()
    assert read_session(path).turns.keys() == {3} and b'"item"' not in left and left.count(b'"turn"') == 1


def test_incomplete_last_line_does_not_count(path):
    whole = path.read_bytes()
    path.write_bytes(whole + whole.splitlines()[3][:99])
    assert read_session(path).incomplete
    file, saved = SessionFolder(path.parent).resume("sess_1")
    assert saved.turns.keys() == {1, 2} and path.read_bytes() == whole
    file.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [*lines[:2], lines[2].replace(b"s2s", b"s2t"), *lines[3:]], "line 3: damaged"),
        (lambda lines: [*lines[:2], b"[1]\n", *lines[2:]], "line 3: damaged"),
        (lambda lines: [*lines[:2], b"\xff\x00\n", *lines[2:]], "line 3: damaged"),
        (lambda lines: lines[1:], "line 1: (damaged|version)"),
        (lambda lines: [lines[0][:40]], "not a saved session, or cut off"),
        (lambda lines: [], "not a saved session, or cut off"),
    ],
)
def test_damage_is_named(path, change, message):
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))
    before = path.read_bytes()
    for read in (read_session, lambda path: SessionFolder(path.parent).resume(path.stem)):
        with pytest.raises(UserError, match=message):
            read(path)
    assert path.read_bytes() == before


def test_other_version_is_refused(path):
    path.write_bytes(to_line(replace(header(), version=2), NO_SPEECH))
    with pytest.raises(UserError, match="version 2 of the format; this release reads 1"):
        read_session(path)


def test_session_is_open_once(path):
    store = SessionFolder(path.parent)
    file, _ = store.resume("sess_1")
    for use in (store.resume, store.delete):
        with pytest.raises(UserError, match="another process uses this session"):
            use("sess_1")
    file.close()
    store.delete("sess_1")
    with pytest.raises(SessionNotFound):
        store.load("sess_1")


@pytest.mark.parametrize("id", ["", "../sess_1", "a/b", "x" * 65, "sess_2", "a\0b"])
def test_unknown_ids_are_refused(path, id):
    with pytest.raises(SessionNotFound):
        SessionFolder(path.parent / "folder").load(id)


def test_session_without_turns_leaves_no_file(tmp_path):
    file = SessionFolder(tmp_path).create(header())
    file.write(Settings({}))
    file.close()
    file.write(Settings({}))
    assert not list(tmp_path.iterdir())


def test_old_sessions_are_deleted(path):
    store = SessionFolder(path.parent)
    assert store.delete_older(1.0) == 0 and list(store.ids()) == ["sess_1"]
    os.utime(path, (0, time.time() - 2 * 24 * 3600))
    file, _ = store.resume("sess_1")
    os.utime(path, (0, time.time() - 2 * 24 * 3600))
    assert store.delete_older(1.0) == 0  # in use
    file.close()
    assert store.delete_older(1.0) == 1 and not list(store.ids())


WRITER = """
import sys
from tests.sessions.test_session_file import SessionFolder, header, turn
file = SessionFolder(sys.argv[1]).create(header())
for number in range(1, 100_000):
    file.write(turn(number))
    print(number, flush=True)
"""


def test_killed_process_loses_no_whole_line(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    written = [int(process.stdout.readline()) for _ in range(50)]
    process.send_signal(signal.SIGKILL)
    written += [int(line) for line in process.stdout.read().split()]
    process.wait()
    file, saved = SessionFolder(tmp_path).resume("sess_1")
    assert saved.turns.keys() >= set(written)
    assert all(found.patches.same(block(found.number)) for found in saved.turns.values())
    file.close()
    assert len(list(read_entries(tmp_path / "sess_1.jsonl"))) == 1 + len(saved.turns)


def test_full_disk_is_an_error_of_the_system(path, monkeypatch):
    file = SessionFile(path)
    file.load()

    def fail(descriptor, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.write", fail)
    with pytest.raises(OSError, match="No space left"):
        file.write(turn(5))
