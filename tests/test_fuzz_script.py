"""The script for long fuzz runs counts cases and failures, saves a failing input, and ends on Ctrl-C."""

from types import SimpleNamespace

import pytest

from tests import fuzz, needs

hypothesis = needs.module("hypothesis", "dev")

from hypothesis import given, settings
from hypothesis import strategies as st


def planted(tmp_path, fails, out):
    """A target of two cases a round, of which `fails(number)` fails, and one that reads a temporary file."""
    numbers = []

    @settings(max_examples=2, database=None, deadline=None)
    @given(st.text())
    def test_planted(text):
        numbers.append(text)
        if fails(len(numbers)):
            raise ValueError("planted")

    @settings(max_examples=1, database=None)
    @given(st.integers(), st.binary())
    def test_files(tmp_path_factory, number, data):
        (tmp_path_factory.getbasetemp() / "file").write_bytes(data)

    return fuzz.targets(SimpleNamespace(test_planted=test_planted, test_files=test_files), tmp_path, out)


def run_rounds(targets, wanted):
    for number in fuzz.rounds(targets, 1.0, 5):
        if number == wanted:
            return


def test_failures_are_counted_and_the_first_is_saved(tmp_path, capsys):
    out = tmp_path / "out"
    first, second = targets = planted(tmp_path, lambda number: number in (3, 6), out)
    run_rounds(targets, 3)
    assert (first.name, first.cases, first.failures) == ("planted", 6, 2)
    assert (second.cases, second.failures) == (3, 0) and (tmp_path / "file").exists()
    saved = (out / "planted.txt").read_text()
    assert saved.startswith("seed 6\ninput '") and "ValueError: planted" in saved
    assert [path.name for path in out.iterdir()] == ["planted.txt"]
    assert "planted.txt" in capsys.readouterr().out
    table = fuzz.table(targets).split("\n")
    assert [line.split() for line in table[1:]] == [["planted", "6", "2"], ["files", "3", "0"], ["all", "9", "2"]]


@pytest.mark.parametrize("fails, status", [(lambda number: number == 1, 1), (lambda number: False, 0)])
def test_ctrl_c_prints_the_table(tmp_path, capsys, monkeypatch, fails, status):
    first, second = planted(tmp_path, fails, tmp_path / "out")

    def interrupted(seed):
        raise KeyboardInterrupt

    monkeypatch.setattr(second, "run", interrupted)
    assert fuzz.fuzz([first, second], 1.0) == status
    assert f"stopped\ntarget{'cases':>30}" in capsys.readouterr().out


def test_time_ends_the_run(tmp_path, capsys):
    targets = planted(tmp_path, lambda number: False, tmp_path / "out")
    assert fuzz.fuzz(targets, 0.0) == 0
    assert not any(target.cases for target in targets)
