"""`sg2 bench voices` on a few sentences."""

import json

import pytest

from speechgpt2.bench import voices
from speechgpt2.errors import UserError
from speechgpt2.tts.voices import Voice
from tests import needs

CLASSIC = Voice("espeak", "f3", "en", "en-us"), Voice("espeak", "f3", "zh", "cmn-latn-pinyin")


@needs.tool("flite")
@needs.voice(*CLASSIC)
def test_every_assistant_voice_is_measured(tmp_path):
    rows = voices.main("classic", sentences=2, out=tmp_path / "speed.json")
    assert [row.lang for row in rows] == ["en", "zh"]
    assert all(row.audio > 1 and row.per_second > 0 and row.speed * row.per_second == pytest.approx(1) for row in rows)
    assert len(json.loads((tmp_path / "speed.json").read_text())["tables"]["Speech synthesis"]) == 2


def test_unknown_set_is_refused():
    with pytest.raises(UserError, match="classic, natural"):
        voices.main("robots")
