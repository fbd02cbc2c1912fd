"""The runner: nothing is done twice, nothing depends on who was faster or was killed, and no clip ends a run."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from speechgpt2.data.pipeline import output, shar
from speechgpt2.data.pipeline.clip_audio import Workspace
from speechgpt2.data.pipeline.runner import PipelineRun
from speechgpt2.data.pipeline.stage import Stage
from speechgpt2.data.pipeline.workers import LocalWorkers, Task
from speechgpt2.data.record import Clip
from speechgpt2.errors import UserError
from tests import needs
from tests.data.pipeline import dying
from tests.data.pipeline.stages import Cut, CutConfig, Level, LevelConfig, Take, steps

needs.module("pyarrow", "data")

SCRIPT = """
import sys
from pathlib import Path
from speechgpt2.data.pipeline import output
from speechgpt2.data.pipeline.runner import PipelineRun
from tests.data.pipeline import dying
from tests.data.pipeline.stages import steps

if __name__ == "__main__":
    source, out, workers = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    with PipelineRun(source, out, steps(pause=0.02)) as run:
        run.process(workers)
        output.write(run, shard=4)
"""


def process(source: Path, out: Path, made=None, workers: int = 0, **options) -> output.Summary:
    with PipelineRun(source, out, made or steps()) as run:
        run.process(workers, **options)
        return output.write(run, shard=4)


def tree(out: Path) -> dict[str, str]:
    """What a run promises to be the same, by name."""
    files = [*sorted((out / "shar").iterdir()), out / "scores.parquet", out / "rejected.jsonl"]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_clips_are_split_and_checked(recordings, tmp_path):
    summary = process(recordings, tmp_path / "out")
    assert summary.kept == 10 and summary.seconds == 5.0
    assert summary.reasons == {"corrupt": (1, 0.0), "quiet": (10, 5.0)}
    kept = list(shar.read(tmp_path / "out" / "shar"))
    assert [clip.id for clip, _ in kept] == sorted(clip.id for clip, _ in kept)
    assert all(len(pcm) == 12_000 for _, pcm in kept)
    clip = kept[0][0]
    assert [decision.stage for decision in clip.decisions] == ["take", "cut", "level", "rules"]
    assert clip.decisions[-1].score == clip.quality.loudness and clip.decisions[-1].threshold == -30.0


def test_second_run_computes_nothing(recordings, tmp_path):
    calls = tmp_path / "calls"
    process(recordings, tmp_path / "out", steps(str(calls)))
    before, first = tree(tmp_path / "out"), calls.stat().st_size
    with PipelineRun(recordings, tmp_path / "out", steps(str(calls))) as run:
        assert not run.process(0)
    assert calls.stat().st_size == first == 20 and tree(tmp_path / "out") == before


def test_only_new_results_are_computed(recordings, tmp_path):
    calls = tmp_path / "calls"
    process(recordings, tmp_path / "out", steps(str(calls)))
    (recordings / "deep" / "9.wav").write_bytes((recordings / "deep" / "0.wav").read_bytes())
    assert process(recordings, tmp_path / "out", steps(str(calls))).kept == 12
    assert calls.stat().st_size == 24


def test_changed_file_is_another_clip(recordings, tmp_path):
    process(recordings, tmp_path / "out")
    (recordings / "deep" / "0.wav").write_bytes(b"no sound any more")
    assert process(recordings, tmp_path / "out").reasons["corrupt"][0] == 2


def test_key_depends_on_clip_version_config_and_model(recordings, tmp_path):
    with PipelineRun(recordings, tmp_path / "out", steps()) as run:
        run.process(0)
        one, two = list(run.clips())[-2:]

    class Newer(Cut):
        version = 2

    class Asking(Cut):
        model = "cutter-7"

    keys = [stage.key(one) for stage in (Cut(CutConfig()), Cut(CutConfig(seconds=1)), Newer(CutConfig()))]
    keys += [Asking(CutConfig()).key(one), Cut(CutConfig()).key(two)]
    assert len(set(keys)) == 5 and Cut(CutConfig()).key(one) == keys[0]


def test_changed_threshold_recomputes_nothing(recordings, tmp_path):
    calls = tmp_path / "calls"
    process(recordings, tmp_path / "out", steps(str(calls)))
    assert process(recordings, tmp_path / "out", steps(str(calls), least=-60.0), compute=False).kept == 20
    assert process(recordings, tmp_path / "out", steps(str(calls), least=0.0), compute=False).kept == 0
    assert calls.stat().st_size == 20
    assert not list((tmp_path / "out" / "shar").iterdir())


def test_missing_results_are_pending(recordings, tmp_path):
    summary = process(recordings, tmp_path / "out", compute=False)
    assert summary.reasons == {"pending": (6, 0.0)} and summary.unfinished == 6
    assert process(recordings, tmp_path / "out").kept == 10  # was not taken for done


def test_many_processes_give_the_bytes_of_one(recordings, tmp_path):
    process(recordings, tmp_path / "one")
    process(recordings, tmp_path / "two", workers=2)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_clip_that_kills_its_worker_is_rejected_alone(recordings, tmp_path):
    for name in ("crash", "bug"):
        (recordings / f"{name}.wav").write_bytes(b"x")
    summary = process(recordings, tmp_path / "out", workers=1)
    assert summary.kept == 10 and summary.reasons["failed"][0] == 2 == summary.unfinished
    details = (tmp_path / "out" / "rejected.jsonl").read_text()
    assert "ZeroDivisionError: one of ours" in details and "process crashed" in details


def test_stalled_clip_is_given_up(recordings, tmp_path):

    slow: list[Stage] = [Level(LevelConfig(pause=60.0))]
    with LocalWorkers(slow, Workspace(recordings, tmp_path), count=1, timeout=1.0) as workers:
        workers.submit(Task(Clip("a"), 0))
        [done] = workers.collect()
        assert done.fault == "not finished within 1 s" and workers.idle == 1


def test_two_runs_do_not_share_a_folder(recordings, tmp_path):
    with PipelineRun(recordings, tmp_path / "out", steps()), pytest.raises(UserError, match="another process uses"):
        PipelineRun(recordings, tmp_path / "out", steps())


def test_lost_recording_is_a_user_error(recordings, tmp_path):
    process(recordings, tmp_path / "out", steps()[:2])
    for path in (tmp_path / "out" / "work" / "audio").rglob("*.flac"):
        path.unlink()
    with pytest.raises(UserError, match="missing or damaged"):
        process(recordings, tmp_path / "out")


def killed(recordings: Path, out: Path, workers: int, rng: random.Random, longest: float) -> int:
    """Run it, killing it at random moments, until it ends by itself; returns the number of kills."""
    kills = 0
    while True:
        command = [sys.executable, "-c", SCRIPT, str(recordings), str(out), str(workers)]
        process = subprocess.Popen(command, cwd=Path(__file__).parents[3], stderr=subprocess.PIPE)
        try:
            process.wait(rng.uniform(0.2, longest))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            longest *= 1.15
            continue
        assert process.returncode == 0, process.communicate()[1].decode()
        process.communicate()
        return kills


def dies(recordings: Path, out: Path, points: int) -> bool:
    """Whether a process that works on it is killed after so many traces on the disk."""
    pid = os.fork()
    if pid == 0:
        dying.after(points)
        process(recordings, out)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_killed_run_gives_the_same_bytes(recordings, tmp_path):
    """At chosen moments: within stages, between the file of recordings and that of results, in walks and shards."""
    assert all(dies(recordings, tmp_path / "wild", points) for points in (0, 2, 3, 9, 20, 5, 7, 8, 9))
    process(recordings, tmp_path / "wild")
    process(recordings, tmp_path / "calm")
    assert tree(tmp_path / "wild") == tree(tmp_path / "calm")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_run_killed_at_random_gives_the_same_bytes(recordings, tmp_path, workers):
    process(recordings, tmp_path / "calm")
    kills = killed(recordings, tmp_path / "wild", workers, random.Random(workers), 0.5)
    assert kills >= 3 and tree(tmp_path / "wild") == tree(tmp_path / "calm")
    time.sleep(0.5)
    assert not orphans(str(tmp_path)), "a worker outlived its parent"


def orphans(mark: str) -> list[str]:
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace")
        except OSError:
            continue
        if mark in command:
            found.append(command)
    return found


def test_stage_constructor_is_cheap():
    assert Take.__init__ is Stage.__init__
