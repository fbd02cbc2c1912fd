"""Processes that share the processors."""

import multiprocessing
import os

import pytest

from speechgpt2.processes import THREADS, single_threaded


def threads(_):
    return [os.environ.get(name) for name in THREADS]


def test_what_starts_meanwhile_has_one_thread_and_nothing_is_left_of_it(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    before = threads(None)
    with pytest.raises(ZeroDivisionError), single_threaded():
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.map(threads, [0]) == [["1", "1", "1"]]
        raise ZeroDivisionError
    assert threads(None) == before and before[0] == "7" and before[2] is None
