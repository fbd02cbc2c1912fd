"""The table of clients and features (tests/clients/table.py): each works, or is refused by its name."""

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
    refused = cells.pop("structured output")
    assert refused in ("–", "refused: `response_format.type`")
    assert set(cells.values()) <= {"✓", "–"}, cells
