"""Exported sessions: messages and audio, which can be trained on."""

import json

import numpy as np
import pytest

from speechgpt2 import audio
from speechgpt2.corpus.dialogue_file import items
from speechgpt2.corpus.files import FileTree
from speechgpt2.errors import UserError
from speechgpt2.sessions.entries import Removed, SavedSession
from speechgpt2.sessions.export import FILE, export
from tests.sessions.test_session_file import NO_SPEECH, REPLY, header, turn


def session(id="sess_1"):
    saved = SavedSession(header(id))
    for entry in (
        turn(1, user_spoke=True),
        turn(2, "assistant", text="eight", transcript="three plus five?", reply=REPLY),
        turn(3, text="thanks"),
        Removed((1,), deleted=False),
    ):
        saved.add(entry)
    return saved


def decode(codes):
    return np.full(len(codes) * 960, 0.25, np.float32)


def test_export_holds_texts_and_audio(tmp_path):
    found = export(session(), tmp_path, decode)
    assert [m["content"] for m in found] == ["three plus five?", "eight", "thanks"] and found[1]["cut"]
    assert found[0]["seconds"] == 15 * 3 / 25
    pcm = audio.load(tmp_path / found[0]["audio"])
    assert len(pcm) == 45 * 960
    export(session("sess_2"), tmp_path, None)
    lines = [json.loads(line) for line in (tmp_path / FILE).read_text("utf-8").splitlines()]
    assert [line["id"] for line in lines] == ["sess_1", "sess_2"] and "audio" not in lines[1]["messages"][0]
    with pytest.raises(UserError, match="already holds session sess_1"):
        export(session(), tmp_path, decode)


def test_export_can_be_trained_on(tmp_path):
    export(session(), tmp_path, decode)
    found = list(items(FileTree(str(tmp_path)), FILE, range(0, 1)))
    assert [item.record.text for item in found] == ["three plus five?", "eight", "thanks"]
    assert [item.pcm is not None for item in found] == [True] * 3


def test_deleted_turns_are_not_exported(tmp_path):
    saved = session()
    saved.add(Removed((1, 2), deleted=True))
    assert [message["content"] for message in export(saved, tmp_path, decode)] == ["thanks"]
    assert NO_SPEECH not in saved.turns[3].speech(NO_SPEECH)
