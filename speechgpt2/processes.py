"""Worker processes that share the processors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")  # read when a process loads its linear algebra


@contextmanager
def single_threaded() -> Iterator[None]:
    """Limit processes that start inside the block to one thread each.

    On short audio, several threads take up to twice the processor time, which the other processes need.
    """
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
