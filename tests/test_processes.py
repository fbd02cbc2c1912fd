"""Processes that share the processors."""

import multiprocessing
import os

import pytest

from speechgpt2.processes import THREADS, single_threaded


def threads(_):
    return [os.environ.get(name) for name in THREADS]


def test_processes_started_meanwhile_have_one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    before = threads(None)
    with pytest.raises(ZeroDivisionError), single_threaded():
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.map(threads, [0]) == [["1", "1", "1"]]
        raise ZeroDivisionError
    assert threads(None) == before and before[0] == "7" and before[2] is None
