"""`sg2 data demo`: one command from a web site to labelled shards; it goes on after Ctrl-C, and does nothing twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from speechgpt2.data.pipeline import shar
from speechgpt2.tts.voices import training_voices
from tests import needs

needs.module("pyarrow", "data")
needs.module("aiohttp", "crawl")
SG2 = [sys.executable, "-c", "from speechgpt2.cli import main; main()", "data"]


def sg2(*words: str | Path) -> str:
    done = subprocess.run([*SG2, *map(str, words)], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file that holds a result."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".db", ".yaml")]
    return {
        str(path): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in files
        if not path.name.endswith(("-wal", "-shm", "lock"))
    }


@pytest.mark.slow
@needs.voice(training_voices("en")[0], training_voices("zh")[0])
def test_demo_command_runs_the_whole_data_system(tmp_path):
    out = tmp_path / "demo"
    begun = subprocess.Popen([*SG2, "demo", "-o", str(out), "--workers", "1"], stdout=subprocess.PIPE, text=True)
    audio = out / "crawl" / "audio"
    while begun.poll() is None and not any(audio.rglob("*.*")):
        time.sleep(0.05)
    begun.send_signal(signal.SIGINT)
    said, _ = begun.communicate(timeout=120)
    assert begun.returncode == 130 and "to resume" in said

    said = sg2("demo", "-o", out, "--workers", "1")
    assert "Fetched 27 recordings, rejected 12 addresses" in said and "private-address  1" in said
    kept = list(shar.read(out / "run" / "shar"))
    assert len(kept) > 30 and all(clip.source.spdx and clip.prosody.rate for clip, _ in kept)
    assert {clip.lang.code for clip, _ in kept if clip.style.caption_en} == {"en", "zh"}
    assert "<audio" in (out / "run" / "report.html").read_text()
    before = state(out)

    said = sg2("demo", "-o", out, "--workers", "1")
    assert "nothing left to fetch" in said and "nothing to do" in said and "Fetched 27" in said
    changed = {path for path, what in state(out).items() if before.get(path) != what}
    assert {os.path.basename(path) for path in changed} <= {"manifest.jsonl", "rejected.jsonl"}

    talk = next(clip for clip, _ in kept if "/talks/en-1" in clip.source.url)
    said = sg2("takedown", talk.source.url, out / "crawl")
    assert "removed 1 recordings" in said and "taken-down" in said
    assert all(clip.source.url != talk.source.url for clip, _ in shar.read(out / "run" / "shar"))
    assert "taken-down" in sg2("demo", "-o", out)
    rows = [json.loads(line) for line in (out / "run" / "rejected.jsonl").open()]
    assert [row["source"]["url"] for row in rows if row["decisions"][-1]["reason"] == "taken-down"] == [talk.source.url]


def test_demo_without_voices_fails_before_it_starts(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from speechgpt2.cli import app
    from speechgpt2.errors import MissingDependency
    from speechgpt2.tts import voices
    from speechgpt2.tts.engines import SynthesisEngine

    def dumb(text, voice):
        raise MissingDependency("espeak-ng is missing: pip install 'speechgpt2[synthesis]'")

    monkeypatch.setitem(voices.ENGINES, "espeak", SynthesisEngine(dumb))
    result = CliRunner().invoke(app, ["data", "demo", "-o", str(tmp_path / "demo")])
    assert result.exit_code == 2 and "speechgpt2[synthesis]" in result.stderr
    assert not (tmp_path / "demo").exists()
