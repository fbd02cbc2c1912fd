"""Makes a process kill itself with SIGKILL after so many steps that leave a trace on the disk."""

from __future__ import annotations

import os
import signal


def after(points: int) -> None:
    """Count replaced files and filed results; die before the one that follows the `points`-th."""
    from speechgpt2.data.pipeline import runner
    from speechgpt2.data.pipeline.results import Results

    runner.BATCH = 1
    left, replace, add = points, os.replace, Results.add

    def tick() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def dying_replace(*args, **options):
        tick()
        return replace(*args, **options)

    def dying_add(self, results):
        tick()
        return add(self, results)

    os.replace, Results.add = dying_replace, dying_add
