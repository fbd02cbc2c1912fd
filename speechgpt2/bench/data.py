"""Benchmark of the data pipeline: hours of audio per hour, per core and with all processes.

    sg2 bench data                        # synthesis, conversations, cleaning, annotation
    sg2 bench data --records 1000000      # also time and memory of the pipeline's overhead for so many records

Everything runs as in the commands: synthesis in processes of its own; cleaning with the preset `emilia` and annotation
by the steps of `sg2 data`, including decoding and writing of shards. Rates by CPU time hardly change when other
programs run; rates by wall time do.
"""

from __future__ import annotations

import multiprocessing
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from speechgpt2.bench import records as overhead
from speechgpt2.bench.machine import open_console
from speechgpt2.curriculum.sentences import sentence
from speechgpt2.data import steps as presets
from speechgpt2.data.conversations.build import LineRejected, Recipe, make_conversation
from speechgpt2.data.pipeline import output
from speechgpt2.data.pipeline.runner import PipelineRun
from speechgpt2.eval import report
from speechgpt2.eval.report import column
from speechgpt2.processes import single_threaded
from speechgpt2.tts.voices import Voice, draw_voice, speak
from speechgpt2.types import SAMPLE_RATE

CLIPS = 6  # sentences in a recording that is cleaned
PAUSE = 0.5  # seconds between them


@dataclass(frozen=True)
class DataSpeed:
    """Speed of one kind of work.

    Attributes:
        audio: Seconds of audio.
        per_cpu_second: Seconds of audio per second of CPU time.
        processes: Number of processes.
        per_wall_second: Seconds of audio per second of wall time with that many processes.
    """

    work: str = column("work")
    audio: float = column("audio, s", ".0f")
    per_cpu_second: float = column("× real time, CPU time", ".0f")
    processes: int = column("processes", "d")
    per_wall_second: float = column("× real time, wall", ".0f")


@dataclass(frozen=True)
class StageSpeed:
    """Speed of one stage of the pipeline, by wall time, from the pipeline's file of results."""

    stage: str = column("stage")
    audio: float = column("audio, s", ".0f")
    speed: float = column("× real time, wall", ".0f")


def synthesize(job: tuple[int, int]) -> tuple[float, float]:
    """Speak `count` sentences with random espeak voices; returns seconds of audio and of CPU time."""
    seed, count = job
    rng = random.Random(f"bench/{seed}")
    speak("Hello.", _voice(rng, "en")), speak("你好。", _voice(rng, "zh"))  # warm-up
    start, audio = time.process_time(), 0.0
    for number in range(count):
        lang = ("en", "zh")[number % 2]
        audio += speak(sentence(rng, lang), _voice(rng, lang)).duration
    return audio, time.process_time() - start


def build_conversations(job: tuple[int, int]) -> tuple[float, float]:
    """Build `count` conversations on two channels; returns seconds of audio (one channel) and of CPU time."""
    seed, count = job
    recipe = Recipe(count + 2, seed=seed)
    start, audio = 0.0, 0.0
    for number in range(-2, count):
        if number == 0:
            start = time.process_time()
        try:
            length = make_conversation(recipe, number + 2)[0].pcm.shape[1] / SAMPLE_RATE
        except LineRejected:  # its CPU time counts, as in a build
            continue
        audio += length if number >= 0 else 0.0
    return audio, time.process_time() - start


def _voice(rng: random.Random, lang: str) -> Voice:
    while (voice := draw_voice(lang, rng)).engine != "espeak":
        pass
    return voice


def in_processes(work: str, job: Any, cores: int, count: int) -> DataSpeed:
    """Run `job` with `count` pieces in each of `cores` processes."""
    with single_threaded(), multiprocessing.get_context("spawn").Pool(cores) as pool:
        pool.map(job, [(seed, 2) for seed in range(cores)], 1)  # starts the processes
        start = time.perf_counter()
        done = pool.map(job, [(seed, count) for seed in range(cores)], 1)
        wall = time.perf_counter() - start
    audio, cpu = (sum(part) for part in zip(*done))
    return DataSpeed(work, audio, audio / cpu, cores, audio / wall)


def clean(recordings: int) -> tuple[list[DataSpeed], list[StageSpeed]]:
    """Clean and annotate so many recordings of half a minute, in a process like the pipeline's."""
    with single_threaded(), multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_clean, (recordings,))


def _clean(recordings: int) -> tuple[list[DataSpeed], list[StageSpeed]]:
    rows: list[DataSpeed] = []
    with tempfile.TemporaryDirectory() as scratch:
        source, out = Path(scratch) / "in", Path(scratch) / "out"
        source.mkdir()
        audio = sum(_record(source / f"{number:04d}.flac", number) for number in range(recordings))
        config = presets.load("emilia")
        _run(_warm_up(Path(scratch)), Path(scratch) / "warm", config.with_labels())
        spent = [_run(source, out, step) for step in (config, config.with_labels())]
        both = tuple(map(sum, zip(*spent)))
        for work, (cpu, wall) in zip(("cleaning", "annotation", "both"), (*spent, both)):
            rows.append(DataSpeed(work, audio, audio / cpu, 1, audio / wall))
        with PipelineRun(source, out, config.with_labels().build()) as run:
            times = list(run.results.times())
    return rows, [StageSpeed(stage, audio, audio / work) for stage, _, work, audio in times if work > 0.05 and audio]


def _record(path: Path, seed: int) -> float:
    """Write a recording of two alternating voices; returns its seconds."""
    rng, lang = random.Random(f"bench/recording/{seed}"), ("en", "zh")[seed % 2]
    voices, pause = (_voice(rng, lang), _voice(rng, lang)), np.zeros(int(PAUSE * SAMPLE_RATE), np.float32)
    parts = [part for n in range(CLIPS) for part in (speak(sentence(rng, lang), voices[n % 2]).pcm, pause)]
    pcm = np.concatenate(parts)
    pcm += np.random.default_rng(seed).normal(0, 1e-3, len(pcm)).astype(np.float32)
    soundfile.write(path, pcm, SAMPLE_RATE, format="FLAC")
    return len(pcm) / SAMPLE_RATE


def _warm_up(scratch: Path) -> Path:
    """Write one recording for a warm-up run."""
    folder = scratch / "first"
    folder.mkdir()
    _record(folder / "first.flac", 999_999)
    return folder


def _run(source: Path, out: Path, config: presets.PipelineConfig) -> tuple[float, float]:
    """Run the pipeline; returns seconds of CPU time and of wall time."""
    cpu, wall = time.process_time(), time.perf_counter()
    with PipelineRun(source, out, config.build()) as run:
        run.process(workers=0)
        output.write(run)
    return time.process_time() - cpu, time.perf_counter() - wall


def main(
    cores: int = 2, sentences: int = 60, conversations: int = 16, recordings: int = 12, records: int = 0,
    out: str | Path | None = None,
) -> dict[str, list[Any]]:  # fmt: skip
    """Run the benchmark; print the tables and return their rows.

    Args:
        cores: Processes for synthesis and conversations.
        sentences: Sentences per process.
        conversations: Conversations per process.
        recordings: Recordings to clean and annotate.
        records: Records for the pipeline's overhead; 0 skips it.
        out: A JSON file for the results.

    Raises:
        UserError: espeak or pyarrow is not installed.
    """
    console = open_console()
    cleaned, stages = clean(recordings)
    tables: dict[str, list[Any]] = {
        "Making and cleaning speech": [
            in_processes("synthesis (espeak)", synthesize, cores, sentences),
            in_processes("conversations, checked", build_conversations, cores, conversations),
            *cleaned,
        ],
        "Stages": stages,
        "Pipeline overhead, without audio": [overhead.bench(records)] if records else [],
    }
    report.publish(tables, console, out)
    return tables
