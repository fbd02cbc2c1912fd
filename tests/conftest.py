"""Skips tests that need what this machine lacks: see tests/needs.py."""

from __future__ import annotations

from typing import Any

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


@pytest.fixture(params=[pytest.param(kind, marks=needs.device(kind)) for kind in needs.DEVICES])
def device(request: pytest.FixtureRequest) -> Any:
    """Each device in turn, a `torch.device`. Tests compare it with the CPU, so on the CPU they check themselves.

    `sg2 bench device` runs those of its device: `pytest -m needs_cuda` in the files test_device.py.
    """
    import torch

    return torch.device(request.param)
