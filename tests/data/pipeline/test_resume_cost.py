"""The bookkeeping of many records in bounded memory."""

from __future__ import annotations

import pytest

from speechgpt2.bench.records import bench
from tests import needs

needs.module("pyarrow", "data")


@pytest.mark.parametrize(
    "records", [300, pytest.param(20_000, marks=pytest.mark.slow), pytest.param(1_000_000, marks=pytest.mark.slow)]
)
def test_memory_does_not_grow_with_the_records(records):
    measured = bench(records)
    assert 1.5 * records < measured.clips < 2 * records
    assert measured.peak_mb - measured.start_mb < 200 + 200e-6 * 2 * records  # what duplicates are told by
