"""How fast is data made and cleaned? Hours of sound per hour, on one core and on all that are asked for.

    sg2 bench data                        # synthesis, conversations, cleaning, annotation
    sg2 bench data --records 1000000      # also the bookkeeping of so many records, and its memory

Everything runs as the commands run it: synthesis in processes of its own, cleaning with the preset `emilia` and
annotation by `sg2 data`'s own steps, decoding, filing and shards included. Rates by CPU time hardly change when other
programs run; those by the clock ("wall") do.
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
from rich.console import Console

from speechgpt2.bench import records as bookkeeping
from speechgpt2.bench.machine import warn_if_busy
from speechgpt2.curriculum.sentences import sentence
from speechgpt2.data import steps as presets
from speechgpt2.data.conversations.build import Missed, Recipe, converse
from speechgpt2.data.pipeline import output
from speechgpt2.data.pipeline.runner import Run
from speechgpt2.eval import report
from speechgpt2.eval.report import column
from speechgpt2.processes import single_threaded
from speechgpt2.tts.voices import Voice, draw_voice, speak
from speechgpt2.types import SAMPLE_RATE

CLIPS = 6  # sentences in a recording that is cleaned
PAUSE = 0.5  # seconds between them


@dataclass(frozen=True)
class DataSpeed:
    """One kind of work, in seconds of sound: `core` per second of CPU time, `clock` per second by the clock with
    so many processes, which other programs slow down."""

    work: str = column("work")
    sound: float = column("sound, s", ".0f")
    core: float = column("× real time, CPU time", ".0f")
    cores: int = column("processes", "d")
    clock: float = column("× real time, wall", ".0f")


@dataclass(frozen=True)
class StageSpeed:
    """One stage of the run, by the clock, as the file of results has it."""

    stage: str = column("stage")
    sound: float = column("sound, s", ".0f")
    speed: float = column("× real time, wall", ".0f")


def say(job: tuple[int, int]) -> tuple[float, float]:
    """Speak `count` sentences of random espeak voices; seconds of sound, and of work."""
    seed, count = job
    rng = random.Random(f"bench/{seed}")
    speak("Hello.", _voice(rng, "en")), speak("你好。", _voice(rng, "zh"))  # what is loaded once
    begun, sound = time.process_time(), 0.0
    for number in range(count):
        lang = ("en", "zh")[number % 2]
        sound += speak(sentence(rng, lang), _voice(rng, lang)).duration
    return sound, time.process_time() - begun


def converse_some(job: tuple[int, int]) -> tuple[float, float]:
    """Make `count` whole conversations on two channels; seconds of each conversation once, and of work."""
    seed, count = job
    recipe = Recipe(count + 2, seed=seed)
    begun, sound = 0.0, 0.0
    for number in range(-2, count):
        if number == 0:
            begun = time.process_time()
        try:
            length = converse(recipe, number + 2)[0].pcm.shape[1] / SAMPLE_RATE
        except Missed:  # its work counts, as in a build
            continue
        sound += length if number >= 0 else 0.0
    return sound, time.process_time() - begun


def _voice(rng: random.Random, lang: str) -> Voice:
    while (voice := draw_voice(lang, rng)).engine != "espeak":
        pass
    return voice


def in_processes(work: str, job: Any, cores: int, count: int) -> DataSpeed:
    """`count` pieces of a job on each of so many processes."""
    with single_threaded(), multiprocessing.get_context("spawn").Pool(cores) as pool:
        pool.map(job, [(seed, 2) for seed in range(cores)], 1)  # starts them
        begun = time.perf_counter()
        done = pool.map(job, [(seed, count) for seed in range(cores)], 1)
        clock = time.perf_counter() - begun
    sound, worked = (sum(part) for part in zip(*done))
    return DataSpeed(work, sound, sound / worked, cores, sound / clock)


def clean(recordings: int) -> tuple[list[DataSpeed], list[StageSpeed]]:
    """Clean and then annotate so many recordings of half a minute, in a process like those of a run."""
    with single_threaded(), multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_clean, (recordings,))


def _clean(recordings: int) -> tuple[list[DataSpeed], list[StageSpeed]]:
    rows: list[DataSpeed] = []
    with tempfile.TemporaryDirectory() as scratch:
        source, out = Path(scratch) / "in", Path(scratch) / "out"
        source.mkdir()
        sound = sum(_record(source / f"{number:04d}.flac", number) for number in range(recordings))
        config = presets.load("emilia")
        _run(_warm(Path(scratch)), Path(scratch) / "warm", config.annotated())
        spent = [_run(source, out, step) for step in (config, config.annotated())]
        both = tuple(map(sum, zip(*spent)))
        for work, (worked, clock) in zip(("cleaning", "annotation", "both"), (*spent, both)):
            rows.append(DataSpeed(work, sound, sound / worked, 1, sound / clock))
        with Run(source, out, config.annotated().build()) as run:
            times = list(run.results.times())
    return rows, [StageSpeed(stage, heard, heard / work) for stage, _, work, heard in times if work > 0.05 and heard]


def _record(path: Path, seed: int) -> float:
    """A recording of two voices in turn; its seconds."""
    rng, lang = random.Random(f"bench/recording/{seed}"), ("en", "zh")[seed % 2]
    voices, pause = (_voice(rng, lang), _voice(rng, lang)), np.zeros(int(PAUSE * SAMPLE_RATE), np.float32)
    parts = [part for n in range(CLIPS) for part in (speak(sentence(rng, lang), voices[n % 2]).pcm, pause)]
    pcm = np.concatenate(parts)
    pcm += np.random.default_rng(seed).normal(0, 1e-3, len(pcm)).astype(np.float32)
    soundfile.write(path, pcm, SAMPLE_RATE, format="FLAC")
    return len(pcm) / SAMPLE_RATE


def _warm(scratch: Path) -> Path:
    """One recording by which everything is loaded before the clock runs."""
    folder = scratch / "first"
    folder.mkdir()
    _record(folder / "first.flac", 999_999)
    return folder


def _run(source: Path, out: Path, config: presets.PipelineConfig) -> tuple[float, float]:
    """Seconds of work and by the clock."""
    begun, clock = time.process_time(), time.perf_counter()
    with Run(source, out, config.build()) as run:
        run.process(workers=0)
        output.write(run)
    return time.process_time() - begun, time.perf_counter() - clock


def main(
    cores: int = 2, sentences: int = 60, conversations: int = 16, recordings: int = 12, records: int = 0,
    out: str | Path | None = None,
) -> dict[str, list[Any]]:  # fmt: skip
    """Print the tables and return their rows. `out`: a JSON file. Errors: `UserError` without espeak or pyarrow."""
    console = Console()
    warn_if_busy(console)
    cleaned, stages = clean(recordings)
    tables: dict[str, list[Any]] = {
        "Making and cleaning speech": [
            in_processes("synthesis (espeak)", say, cores, sentences),
            in_processes("conversations, checked", converse_some, cores, conversations),
            *cleaned,
        ],
        "Stages": stages,
        "Bookkeeping, without sound": [bookkeeping.bench(records)] if records else [],
    }
    for title, rows in tables.items():
        report.show(title, rows, console)
    if out is not None:
        report.save_json(Path(out), tables=tables)
    return tables
