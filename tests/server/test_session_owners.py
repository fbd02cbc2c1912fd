"""Saved sessions of several API keys: each sees its own, and learns nothing of the others'."""

from types import SimpleNamespace

import pytest

from speechgpt2.server.api_errors import ApiError
from speechgpt2.server.config import ServerConfig, SessionsConfig
from speechgpt2.server.saved_sessions import SavedSessions
from speechgpt2.sessions.store import SessionFolder
from tests.sessions.test_session_file import ENTRIES, header

ANNA, BEN = "key-1", "key-2"


@pytest.fixture
def sessions(tmp_path):
    """A server's saved sessions: one of Anna's and one of Ben's."""
    for id, owner in (("sess_1", ANNA), ("sess_2", BEN)):
        file = SessionFolder(tmp_path).create(header(id, owner))
        for entry in ENTRIES:
            file.write(entry)
        file.close()
    engine = SimpleNamespace(session_header=lambda id, model, owner: header(id, owner))
    return SavedSessions(ServerConfig(sessions=SessionsConfig(str(tmp_path))), engine)


def code_of(action, *arguments):
    with pytest.raises(ApiError) as error:
        action(*arguments)
    return error.value.status, error.value.body["code"]


def damage(path):
    path.write_bytes(path.read_bytes().replace(b'"role":"user"', b'"role":"tool"', 1))


def test_key_sees_its_own_sessions(sessions):
    assert [saved.header.id for saved in sessions.list(ANNA)] == ["sess_1"]
    saved = sessions.load("sess_1", ANNA)
    assert len(saved.turns) == 2 and list(saved.items) == ["item_1"]
    assert code_of(sessions.load, "sess_1", BEN) == code_of(sessions.load, "sess_3", BEN) == (404, "session_not_found")


def test_damaged_session_of_another_key_is_not_found(sessions, tmp_path):
    damage(tmp_path / "sess_1.jsonl")
    assert code_of(sessions.load, "sess_1", ANNA) == (400, "session_unusable")
    assert code_of(sessions.load, "sess_1", BEN) == (404, "session_not_found")
    assert list(sessions.list(ANNA)) == [] and [saved.header.id for saved in sessions.list(BEN)] == ["sess_2"]
