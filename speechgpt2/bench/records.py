"""Benchmark of the pipeline's overhead for many records, without audio: time and memory.

    sg2 bench data --records 1000000

A stage returns random measurements. Everything else is real: intake, the file of results, all surveys, and the files of
scores and rejected records.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from speechgpt2.data.annotate.caption import Captions, CaptionsConfig
from speechgpt2.data.clean.duplicates import SLOTS, Duplicates, DuplicatesConfig
from speechgpt2.data.clean.speakers import COEFFICIENTS, NameSpeakers, SpeakersConfig
from speechgpt2.data.clean.transcript_checks import RateOutliers, RateOutliersConfig
from speechgpt2.data.pipeline import output
from speechgpt2.data.pipeline.clip_audio import ClipAudio
from speechgpt2.data.pipeline.global_steps import Rule, Rules, RulesConfig
from speechgpt2.data.pipeline.runner import PipelineRun
from speechgpt2.data.pipeline.stage import Stage
from speechgpt2.data.record import AudioInfo, Clip, Language, Prosody, Quality, Source, Speaker
from speechgpt2.eval.report import column

RULES = (Rule("too-short", "audio.duration", at_least=3.0), Rule("noisy", "quality.snr", at_least=15.0))


@dataclass(frozen=True)
class OverheadResult:
    """Time and peak memory of a run over `records`, of two clips each."""

    records: int = column("records", ",d")
    clips: int = column("clips kept", ",d")
    seconds: float = column("CPU s", ".1f")
    per_second: float = column("records per CPU s", ".0f")
    clock: float = column("wall s", ".1f")
    start_mb: float = column("MB at its start", ".0f")
    peak_mb: float = column("MB at most", ".0f")


@dataclass(frozen=True)
class RandomClipsConfig:
    """Settings of `RandomClips`: none."""

    kind: Literal["random-clips"] = "random-clips"


class RandomClips(Stage[RandomClipsConfig]):
    """Splits a record into two clips with random values of everything that surveys read."""

    version = 1

    def __call__(self, clip: Clip, clip_audio: ClipAudio) -> list[Clip]:
        """Return the two clips."""
        rng = random.Random(clip.id)
        return [self._clip(clip, number, rng) for number in range(2)]

    def _clip(self, clip: Clip, number: int, rng: random.Random) -> Clip:
        seconds, pitch = round(rng.uniform(2, 30), 3), round(rng.uniform(80, 250), 2)
        embedding = tuple(round(rng.gauss(0, 1), 3) for _ in range(2 * COEFFICIENTS))
        audio = AudioInfo(
            clip.audio.path, 24_000, 1, 0.0, seconds, "FLAC", hashlib.sha256(clip.id.encode()).hexdigest(),
            fingerprint=rng.randbytes(2 * (SLOTS - 1)).hex(),
        )  # fmt: skip
        extra = {"characters_per_second": round(rng.gauss(12, 3), 3)}
        return replace(
            clip, id=f"{clip.id}-{number}", parent_id=clip.id, audio=audio, speakers=(Speaker("", embedding),),
            quality=Quality(snr=round(rng.gauss(25, 8), 2), loudness=-20.0, extra=extra),
            prosody=Prosody(pitch, round(rng.uniform(1, 4), 3), energy=-20.0, rate=round(rng.uniform(2, 6), 3)),
        )  # fmt: skip


def steps() -> list[Any]:
    """Return the stage of random clips and all surveys."""
    return [
        RandomClips(RandomClipsConfig()), RateOutliers(RateOutliersConfig()), Rules(RulesConfig(rules=RULES)),
        Duplicates(DuplicatesConfig()), NameSpeakers(SpeakersConfig()), Captions(CaptionsConfig()),
    ]  # fmt: skip


def manifest(folder: Path, records: int) -> Path:
    """Write a manifest of so many records of one file; returns its path."""
    (folder / "sound.flac").touch()

    def lines() -> Iterator[Clip]:
        for number in range(records):
            name = f"{number:09d}"
            source = Source(f"https://example.org/{name}", sha256=hashlib.sha256(name.encode()).hexdigest())
            yield Clip(name, source=source, audio=AudioInfo("sound.flac"), lang=Language(("en", "zh")[number % 2]))

    with (folder / "manifest.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(clip.to_json() + "\n" for clip in lines())
    return folder / "manifest.jsonl"


def bench(records: int) -> OverheadResult:
    """Run over `records` in a new process, whose peak memory is measured."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_run, (records,))


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def _run(records: int) -> OverheadResult:
    start = _peak_mb()
    with tempfile.TemporaryDirectory() as scratch:
        source = manifest(Path(scratch), records)
        begun, clock = time.process_time(), time.perf_counter()
        with PipelineRun(source, Path(scratch) / "out", steps()) as run:
            run.process(workers=0)
            kept = output.write_records(run).kept
        seconds, clock = time.process_time() - begun, time.perf_counter() - clock
    return OverheadResult(records, kept, seconds, records / seconds, clock, start, _peak_mb())
