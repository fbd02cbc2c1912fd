"""The latency benchmark against a server without a model."""

import json
import re

import numpy as np

from speechgpt2 import audio
from speechgpt2.bench import realtime
from speechgpt2.bench.realtime import LoadResult, split_at_speech_end
from tests import needs
from tests.server.conftest import silence, voice

needs.module("matplotlib", "eval")


def test_sessions_measure_latencies(tmp_path, served, capsys):
    audio.save(tmp_path / "q.wav", np.concatenate([voice(0.5), silence(0.2)]))
    rows = realtime.main(served.http, None, "mini", [2], 2, tmp_path, tmp_path / "report.json")
    (row,) = rows
    assert (row.sessions, row.turns, row.unanswered) == (2, 4, 0)
    assert row.from_speech_ms[0] > 450 and row.from_turn_ms[0] < row.from_speech_ms[0]  # 500 ms of silence lie between
    assert row.barge_in_ms[0] < 2000
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["sessions"][0]["sessions"] == 2 and (tmp_path / "report.png").stat().st_size > 10_000
    printed = capsys.readouterr()
    assert printed.out.count("# Concurrent sessions") == 1 and len(printed.out.splitlines()) == 3
    assert re.search(r"^sessions 2: \d+ ms from the last word", printed.err, re.M)


def test_limit_of_real_time():
    good = LoadResult(1, 2, (1, 2, 3), (500, 700, 800), (1, 2, 3), 20.0, 0.0, 0, 0)
    assert good.in_real_time
    for change in ({"underruns": 1}, {"unanswered": 1}, {"from_speech_ms": (500, 1100, 1200)}):
        assert not LoadResult(**{**vars(good), **change}).in_real_time


def test_split_at_speech_end():
    speech, tail = split_at_speech_end(np.concatenate([voice(0.5), silence(0.3)]))
    assert abs(len(speech) - 12_000) <= 240 and len(speech) + len(tail) == 19_200
    assert len(split_at_speech_end(silence(0.1))[0]) == 2400
