"""The load client against a server without a model: what it counts, and when it stops."""

import json
import re

import numpy as np

from speechgpt2 import audio
from speechgpt2.bench import realtime
from speechgpt2.bench.realtime import Load, split_at_end
from tests import needs
from tests.server.conftest import silence, voice

needs.module("matplotlib", "eval")


def test_callers_measure_what_they_hear(tmp_path, served, capsys):
    audio.save(tmp_path / "q.wav", np.concatenate([voice(0.5), silence(0.2)]))
    rows = realtime.main(served.http, None, "mini", [2], 2, tmp_path, tmp_path / "report.json")
    (row,) = rows
    assert (row.sessions, row.turns, row.unanswered) == (2, 4, 0)
    assert row.from_speech_ms[0] > 450 and row.from_turn_ms[0] < row.from_speech_ms[0]  # 500 ms of silence lie between
    assert row.barge_in_ms[0] < 2000
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["callers"][0]["sessions"] == 2 and (tmp_path / "report.png").stat().st_size > 10_000
    assert re.search(r"Callers at once", capsys.readouterr().out)


def test_where_real_time_ends():
    fine = Load(1, 2, (1, 2, 3), (500, 700, 800), (1, 2, 3), 20.0, 0.0, 0, 0)
    assert fine.in_real_time
    for change in ({"underruns": 1}, {"unanswered": 1}, {"from_speech_ms": (500, 1100, 1200)}):
        assert not Load(**{**vars(fine), **change}).in_real_time


def test_a_recording_ends_where_its_speech_does():
    speech, tail = split_at_end(np.concatenate([voice(0.5), silence(0.3)]))
    assert abs(len(speech) - 12_000) <= 240 and len(speech) + len(tail) == 19_200
    assert len(split_at_end(silence(0.1))[0]) == 2400
