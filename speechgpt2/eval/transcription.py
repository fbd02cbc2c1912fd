"""How well does a model transcribe speech? Word errors on recordings with transcripts, in any format of training data.

The model runs free, as its users run it; the losses that training reports are teacher-forced. The ASR judge's errors on
the same recordings are the control.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from speechgpt2.corpus.formats import DataPart, Skipped, find_parts
from speechgpt2.errors import UserError
from speechgpt2.eval import report
from speechgpt2.eval.answers import load_model
from speechgpt2.eval.judges import Judges, load_asr
from speechgpt2.eval.speech_sets import SpeechClip
from speechgpt2.eval.transcripts import TranscriptRow, transcript_rows
from speechgpt2.languages import NAMES, language_of
from speechgpt2.types import SAMPLE_RATE

LONGEST = 60.0  # seconds; longer recordings are left out


def main(
    data: str,
    model: Any = "mini",
    codec: str | Path | None = None,
    n: int = 100,
    asr: str | Path | None = None,
    seed: int = 0,
    threads: int = 1,
    out: str | Path | None = None,
    device: str = "cpu",
) -> list[TranscriptRow]:
    """Transcribe recordings, print the table of errors, and return its rows.

    Args:
        data: A location that `corpus.formats` reads. Of a corpus with splits, the test split is used.
        model: A name, a folder, or a `SpeechGPT`.
        codec: The codec, if it is not in the model's folder.
        n: The most recordings of each language.
        asr: The ASR judge, as `asr.load` takes it.
        seed: Seed of the choice of recordings.
        threads: CPU threads of the judge.
        out: A folder for transcription.json and transcription.md.
        device: Where the model computes.

    Raises:
        UserError: The data, the model or the judge cannot be used, or nothing has a transcript.
    """
    console, target, parts = Console(), report.make_folder(out), find_parts(data)
    talker = load_model(model, device, codec)
    _ = talker.lm.prompt.transcription_system  # raises for a model that was not trained to transcribe
    panel = Judges() if asr is None else Judges(load_asr(asr, threads), notes=())
    with Progress(console=console, transient=True) as progress:
        clips = _draw(progress.track(parts, description="reading"), n, random.Random(seed))
        if not clips:
            raise UserError(f"{data}: holds no recording of at most {LONGEST:.0f} s with a transcript")
        task = progress.add_task("transcribing", total=sum(map(len, clips.values())))
        rows = transcript_rows(talker, clips, panel, lambda: progress.advance(task))
    content = {"data": data, "seed": seed, "asr": panel.asr.name if panel.asr else None}
    report.publish_evaluation("transcription", {"Transcription": rows}, panel.notes, console, target, **content)
    return rows


def _draw(parts: Iterable[DataPart], n: int, rng: random.Random) -> dict[str, list[SpeechClip]]:
    """Draw up to `n` clips of each language, by its name (reservoir sampling, so that few are in memory)."""
    chosen: dict[str, list[SpeechClip]] = {}
    seen: dict[str, int] = {}
    for clip in (clip for part in parts for clip in _clips(part)):
        name = NAMES[clip.lang]
        kept, seen[name] = chosen.setdefault(name, []), seen.get(name, 0) + 1
        place = len(kept) if len(kept) < n else rng.randrange(seen[name])
        kept[place : place + 1] = [clip] if place < n else []
    return chosen


def _clips(part: DataPart) -> Iterator[SpeechClip]:
    """Yield the recordings of a part that have a transcript; of a corpus with splits, those of the test split."""
    for item in part.read():
        if isinstance(item, Skipped) or item.pcm is None or not item.record.text:
            continue
        if len(item.pcm) > LONGEST * SAMPLE_RATE or (part.is_split and item.record.split != "test"):
            continue
        lang = item.record.lang if item.record.lang in NAMES else language_of(item.record.text)
        yield SpeechClip(np.asarray(item.pcm, np.float32), item.record.text, lang, item.record.speaker)
