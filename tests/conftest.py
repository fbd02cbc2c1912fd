"""Skips tests that need what this machine lacks: see tests/needs.py."""

from __future__ import annotations

import pytest

from tests import needs


def pytest_configure(config: pytest.Config) -> None:
    for line in needs.MARKS.values():
        config.addinivalue_line("markers", line)


def pytest_itemcollected(item: pytest.Item) -> None:
    needs.expand(item)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if reason := needs.missing(item):
        pytest.skip(reason)
