"""Does the model recognise whether a question is complete or broken off? `semantic_vad` relies on it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from speechgpt2.corpus.held_out import HeldOutQuestion
from speechgpt2.errors import UserError
from speechgpt2.eval.report import column
from speechgpt2.tts import voices
from speechgpt2.tts.utterance import Utterance
from speechgpt2.types import SAMPLE_RATE, UNFINISHED

PAUSE = 0.2  # seconds of silence after which a live session asks the model


@dataclass(frozen=True)
class EndOfTurnRow:
    """How often the model took questions for complete ones."""

    lang: str = column("language")
    question: str = column("question")
    n: int = column("n", "d")
    complete: float = column("classified as complete", ".2f")


def end_of_turn_rows(
    model: Any, trials: Iterable[HeldOutQuestion], advance: Callable[[], Any] = lambda: None
) -> list[EndOfTurnRow]:
    """Evaluate each question of three words or more twice: complete, and cut before a random word.

    There are no rows for a model that writes no transcripts. `advance` is called after each question.
    """
    groups: dict[tuple[str, str], list[bool]] = {}
    rng = random.Random("endings")
    try:
        for trial in trials:
            for kind, pcm in _variants(voices.speak(trial.exchange.question, trial.voice), rng):
                complete = not model.transcribe(pcm).endswith(UNFINISHED)
                groups.setdefault((trial.exchange.lang, kind), []).append(complete)
            advance()
    except UserError:
        return []
    return [
        EndOfTurnRow(*key, len(group), float(np.mean(group))) for key, group in sorted(groups.items(), reverse=True)
    ]


def _variants(question: Utterance, rng: random.Random) -> Iterator[tuple[str, np.ndarray]]:
    if len(question.words) < 3:
        return
    pause = np.zeros(int(PAUSE * SAMPLE_RATE), np.float32)
    cut = int(question.words[rng.randint(1, len(question.words) - 1)].start * SAMPLE_RATE)
    yield "complete", np.concatenate([question.pcm, pause])
    yield "broken off", np.concatenate([question.pcm[:cut], pause])
