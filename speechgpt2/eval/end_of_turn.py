"""Does the model tell a whole question from one that breaks off? `semantic_vad` relies on it."""

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

PAUSE = 0.2  # seconds of silence after which a live session asks


@dataclass(frozen=True)
class EndOfTurnRow:
    """How often questions were taken for whole ones."""

    lang: str = column("language")
    question: str = column("question")
    n: int = column("n", "d")
    whole: float = column("taken for whole", ".2f")


def end_of_turn_rows(
    model: Any, trials: Iterable[HeldOutQuestion], done: Callable[[], Any] = lambda: None
) -> list[EndOfTurnRow]:
    """Each question of three words or more, once as it is and once up to one of its words, at random.

    No rows for a model that writes no transcripts.
    """
    found: dict[tuple[str, str], list[bool]] = {}
    rng = random.Random("endings")
    try:
        for trial in trials:
            for kind, pcm in _variants(voices.speak(trial.exchange.question, trial.voice), rng):
                whole = not model.transcribe(pcm).endswith(UNFINISHED)
                found.setdefault((trial.exchange.lang, kind), []).append(whole)
            done()
    except UserError:
        return []
    return [EndOfTurnRow(*key, len(group), float(np.mean(group))) for key, group in sorted(found.items(), reverse=True)]


def _variants(question: Utterance, rng: random.Random) -> Iterator[tuple[str, np.ndarray]]:
    if len(question.words) < 3:
        return
    pause = np.zeros(int(PAUSE * SAMPLE_RATE), np.float32)
    cut = int(question.words[rng.randint(1, len(question.words) - 1)].start * SAMPLE_RATE)
    yield "whole", np.concatenate([question.pcm, pause])
    yield "broken off", np.concatenate([question.pcm[:cut], pause])
