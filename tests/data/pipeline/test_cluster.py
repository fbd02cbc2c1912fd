"""The runner on Ray Data: two local workers make what one process makes, and survive what processes survive."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from speechgpt2.cli import app
from speechgpt2.data.pipeline import cluster, output
from speechgpt2.data.pipeline.cluster import RayWorkers
from speechgpt2.data.pipeline.runner import PipelineRun
from speechgpt2.errors import UserError
from tests import needs
from tests.data.pipeline.stages import steps
from tests.data.pipeline.test_runner import process, tree

needs.module("pyarrow", "data")


def test_missing_ray_error_says_what_to_install(recordings, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    result = CliRunner().invoke(app, ["data", "clean", str(recordings), "-o", str(tmp_path / "out"), "--ray"])
    assert result.exit_code == 2 and "speechgpt2[ray]" in result.output


@pytest.fixture(scope="module")
def ray():
    """Ray on this machine with two workers, for all tests of this file."""
    found = needs.module("ray", "ray")
    module, ours = cluster._connect(2)
    assert ours
    yield module
    found.shutdown()


def on_ray(source, out, made=None):
    with PipelineRun(source, out, made or steps()) as run:
        run.process(2, pool=RayWorkers)
        return output.write(run, shard=4)


def test_ray_gives_the_bytes_of_one_process(ray, recordings, tmp_path):
    calls = tmp_path / "calls"
    process(recordings, tmp_path / "one")
    summary = on_ray(recordings, tmp_path / "ray", steps(str(calls)))
    assert summary.kept == 10 and calls.stat().st_size == 20  # the work was done, and once
    assert tree(tmp_path / "one") == tree(tmp_path / "ray")
    with PipelineRun(recordings, tmp_path / "ray", steps(str(calls))) as run:
        assert not run.process(2, pool=RayWorkers)


@pytest.mark.slow
def test_clip_that_kills_its_worker_is_rejected_alone(ray, recordings, tmp_path):
    for name in ("crash", "bug"):
        (recordings / f"{name}.wav").write_bytes(b"x")
    summary = on_ray(recordings, tmp_path / "out")
    assert summary.kept == 10 and summary.reasons["failed"][0] == 2 == summary.unfinished
    details = (tmp_path / "out" / "rejected.jsonl").read_text()
    assert "ZeroDivisionError: one of ours" in details and "process crashed" in details


@pytest.mark.slow
def test_wave_size_does_not_change_results(ray, recordings, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "WAVE", 3)
    process(recordings, tmp_path / "one")
    on_ray(recordings, tmp_path / "ray")
    assert tree(tmp_path / "one") == tree(tmp_path / "ray")


LISTENS = """
from speechgpt2.data.pipeline import cluster
ray, _ = cluster._connect(1)
from ray._common.usage import usage_lib
told = usage_lib.usage_stats_enabled() or bool(ray._private.worker.get_dashboard_url())
print(told, ray.nodes()[0]["NodeManagerAddress"])
"""


def test_ray_has_no_dashboard_and_no_usage_statistics():
    """In a process of its own, for Ray goes by what it finds when it is loaded, here by whichever test came first."""
    needs.module("ray", "ray")
    result = subprocess.run([sys.executable, "-c", LISTENS], capture_output=True, text=True, timeout=120)
    assert result.stdout.split() == ["False", "127.0.0.1"], result.stderr  # nobody else can reach it


@pytest.mark.slow
def test_user_error_of_a_stage_ends_the_run(ray, recordings, tmp_path):
    on_ray(recordings, tmp_path / "out", steps()[:2])
    for path in (tmp_path / "out" / "work" / "audio").rglob("*.flac"):
        path.unlink()
    with pytest.raises(UserError, match="missing or damaged"):
        on_ray(recordings, tmp_path / "out")
