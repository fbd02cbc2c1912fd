"""One held-out question put to a model, and what came of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechgpt2.curriculum import dialogues
from speechgpt2.curriculum.dialogues import Trial
from speechgpt2.eval.testsets import say
from speechgpt2.types import SAMPLE_RATE, AudioDelta, Mode, TextDelta, Transcript, Turn


@dataclass(frozen=True)
class Answer:
    """What the model made of one trial, `pcm [N]` at 24 kHz. Times are wall seconds since it had the whole question."""

    trial: Trial
    mode: Mode
    text: str
    transcript: str | None
    pcm: NDArray[np.float32] = field(repr=False)
    first_audio: float = float("nan")
    done: float = float("nan")

    @property
    def lang(self) -> str:
        return self.trial.exchange.lang

    @property
    def skill(self) -> str:
        return self.trial.exchange.skill

    @property
    def right(self) -> bool:
        return dialogues.right(self.trial.exchange, self.text)

    @property
    def seconds(self) -> float:
        """Length of the spoken answer."""
        return len(self.pcm) / SAMPLE_RATE

    def record(self) -> dict[str, Any]:
        """For a JSON file: enough to read what went wrong."""
        question, voice = self.trial.exchange.question, self.trial.voice.id
        facts = {"mode": self.mode, "skill": self.skill, "lang": self.lang, "voice": voice, "question": question}
        made = {"heard": self.transcript, "answer": self.text, "right": self.right, "seconds": round(self.seconds, 2)}
        return {**facts, **made, "first_audio": self.first_audio, "done": self.done}


def load(model: Any) -> Any:
    """The `SpeechGPT` of that name or folder; a loaded one as it is. Errors: `UserError`."""
    if isinstance(model, (str, Path)):
        from speechgpt2.chat import SpeechGPT

        return SpeechGPT.from_pretrained(model)
    return model


def ask(model: Any, trial: Trial, mode: Mode, **options: Any) -> Answer:
    """Put one question to `model` (a `SpeechGPT`), spoken by the trial's voice or typed, and collect its events.

    `options` are those of `SpeechGPT.conversation`. Errors: `UserError` where the voice cannot speak.
    """
    question = trial.exchange.question
    turn = Turn.user(speech=say(question, trial.voice).pcm) if mode.startswith("s2") else Turn.user(question)
    text, transcript, audio, first = "", None, [np.zeros(0, np.float32)], float("nan")
    start = time.perf_counter()
    for event in model.chat([turn], mode=mode, stream=True, **options):
        if isinstance(event, TextDelta):
            text += event.text
        elif isinstance(event, Transcript):
            transcript = event.text
        elif isinstance(event, AudioDelta):
            first = time.perf_counter() - start if len(audio) == 1 else first
            audio.append(np.asarray(event.pcm, dtype=np.float32))
    done = time.perf_counter() - start
    return Answer(trial, mode, text.strip(), transcript, np.concatenate(audio), first, done)
