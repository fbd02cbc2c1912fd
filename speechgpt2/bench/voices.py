"""Benchmark of speech synthesis: what a second of speech costs.

    sg2 bench voices --voices natural

The assistant's voices of a set speak random sentences of the curriculum in one thread. CPU time hardly depends on the
other programs that run, except where they share the units of a core.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from speechgpt2.bench.machine import open_console
from speechgpt2.curriculum.sentences import sentence
from speechgpt2.eval import report
from speechgpt2.eval.report import column
from speechgpt2.tts.voice_sets import voice_set
from speechgpt2.tts.voices import Voice, speak


@dataclass(frozen=True)
class VoiceSpeed:
    """Speed of one voice in one thread."""

    voice: str = column("voice")
    lang: str = column("language")
    audio: float = column("audio, s", ".0f")
    per_second: float = column("CPU s per second of speech", ".2f")
    speed: float = column("× real time, CPU time", ".1f")


def main(voices: str = "natural", sentences: int = 10, out: str | Path | None = None) -> list[VoiceSpeed]:
    """Run the benchmark; print the table and return its rows.

    Args:
        voices: The set of voices.
        sentences: Sentences of each voice.
        out: A JSON file for the rows.

    Raises:
        UserError: There is no such set, or the engine of a voice is not installed.
    """
    torch.set_num_threads(1)
    speakers = [voice for lang in ("en", "zh") for voice in voice_set(voices).assistant[lang]]
    rows = [measure(voice, _sentences(voice.lang, sentences)) for voice in speakers]
    report.publish({"Speech synthesis": rows}, open_console(), out)
    return rows


def measure(voice: Voice, texts: Sequence[str]) -> VoiceSpeed:
    """Speak `texts`, after a first one that loads the engine."""
    speak(texts[0], voice)
    start = time.process_time()
    audio = float(sum(speak(text, voice).duration for text in texts))
    cpu = time.process_time() - start
    return VoiceSpeed(voice.speaker, voice.lang, audio, cpu / audio, audio / cpu)


def _sentences(lang: str, count: int) -> list[str]:
    rng = random.Random(f"bench/{lang}")
    return [sentence(rng, lang) for _ in range(count)]
