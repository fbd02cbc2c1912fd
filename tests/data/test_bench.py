"""`sg2 bench data` on a few sentences: every row is there, of sound that was made, by both clocks."""

import json
import math

import pytest

from tests import needs

needs.module("pyarrow", "data")
needs.module("lhotse", "data")

from speechgpt2.bench import data
from speechgpt2.tts.voices import Voice


@needs.extra("synthesis", "pyworld")
@needs.voice(Voice("espeak", "m3", "en", "en-us"))
def test_every_kind_of_work_is_measured(tmp_path):
    tables = data.main(cores=1, sentences=4, conversations=1, recordings=4, records=20, out=tmp_path / "speed.json")
    made = {row.work: row for row in tables["Making and cleaning speech"]}
    assert set(made) == {"synthesis (espeak)", "conversations, checked", "cleaning", "annotation", "both"}
    assert all(row.per_cpu_second > 0 and row.per_wall_second > 0 and row.processes == 1 for row in made.values())
    assert made["cleaning"].audio == made["annotation"].audio == made["both"].audio > 5
    parts = sum(made[work].audio / made[work].per_cpu_second for work in ("cleaning", "annotation"))
    assert math.isclose(made["both"].audio / made["both"].per_cpu_second, parts)  # their CPU times add up
    assert {"quality", "prosody"} <= {row.stage for row in tables["Stages"]}  # those that take long enough to tell
    [kept] = tables["Pipeline overhead, without audio"]
    assert kept.records == 20 and 20 < kept.clips <= 40 and kept.per_second == pytest.approx(20 / kept.seconds)
    said = json.loads((tmp_path / "speed.json").read_text())["tables"]
    assert {title: len(rows) for title, rows in said.items()} == {title: len(rows) for title, rows in tables.items()}


def test_rates_say_which_clock_they_are_by():
    for row in (data.DataSpeed, data.StageSpeed, data.overhead.OverheadResult):
        titles = [field.metadata["title"] for field in row.__dataclass_fields__.values()]
        assert all("CPU" in title or "wall" in title for title in titles if "real time" in title or " per " in title)
