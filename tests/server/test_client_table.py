"""The table of clients and features (tests/clients/table.py): each feature works, and a refused field is named."""

import pytest

from tests import needs
from tests.clients import table
from tests.server.conftest import voice
from tests.server.test_rest import wav

needs.module("openai", "dev")


@pytest.mark.parametrize("name", table.installed())
def test_features_of_clients(served, tmp_path, name, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", table.NO_KEY)
    recording = tmp_path / "question.wav"
    recording.write_bytes(wav(voice(0.5)))
    cells = {feature: table.cell(name, feature, served.http, recording) for feature in table.FEATURES}
    assert set(cells.values()) <= {"✓", "–"} and "✓" in cells.values(), cells


def test_refused_field_is_named(served, monkeypatch):
    monkeypatch.setitem(table.CLIENTS["openai-python"][1], "chat", refused)
    assert table.cell("openai-python", "chat", served.http, None) == "refused: `logprobs`"


def refused(url, _):
    return table.openai_client(url).chat.completions.create(model="mini", messages=table.HELLO, logprobs=True)
