"""Asks a model one held-out question, and records its answer: the text, the speech and their times."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from speechgpt2.corpus.held_out import HeldOutQuestion
from speechgpt2.curriculum import skills
from speechgpt2.eval.report import column
from speechgpt2.tts import voices
from speechgpt2.types import SAMPLE_RATE, AudioDelta, Mode, TextDelta, Transcript, Turn

if TYPE_CHECKING:
    from speechgpt2.chat import SpeechGPT

MODES: dict[Mode, str] = {"s2s": "spoken → spoken", "t2s": "typed → spoken", "t2t": "typed → typed"}


@dataclass(frozen=True)
class TimedReply:
    """A model's reply to one turn.

    Attributes:
        text: The text of the reply.
        transcript: The model's transcript of a spoken turn; None if the model writes none.
        pcm: The speech of the reply, [N] at 24 kHz.
        first_audio: Wall seconds from the complete question to the first audio; nan without audio.
        done: Wall seconds from the complete question to the end of the reply.
    """

    mode: Mode
    text: str
    transcript: str | None
    pcm: NDArray[np.float32] = field(repr=False)
    first_audio: float
    done: float

    @property
    def seconds(self) -> float:
        """Length of the speech."""
        return len(self.pcm) / SAMPLE_RATE


@dataclass(frozen=True)
class EvaluatedAnswer(TimedReply):
    """A reply to a held-out question."""

    trial: HeldOutQuestion

    @property
    def lang(self) -> str:
        """The language of the question."""
        return self.trial.exchange.lang

    @property
    def skill(self) -> str:
        """The skill that the question tests."""
        return self.trial.exchange.skill

    @property
    def right(self) -> bool:
        """Whether the text of the reply answers the question."""
        return skills.is_correct(self.trial.exchange, self.text)

    def record(self) -> dict[str, Any]:
        """The answer for a JSON file: enough to see what went wrong."""
        return {
            "mode": self.mode,
            "skill": self.skill,
            "lang": self.lang,
            "voice": self.trial.voice.id,
            "question": self.trial.exchange.question,
            "transcript": self.transcript,
            "answer": self.text,
            "right": self.right,
            "seconds": round(self.seconds, 2),
            "first_audio": self.first_audio,
            "done": self.done,
        }


def load_model(model: str | Path | SpeechGPT, device: str = "cpu", codec: str | Path | None = None) -> SpeechGPT:
    """Load a `SpeechGPT`.

    Args:
        model: A name or a folder; a loaded `SpeechGPT` is returned unchanged.
        device: Where it computes.
        codec: The codec, if it is not in the model's folder.

    Raises:
        UserError: The model cannot be loaded.
    """
    if isinstance(model, (str, Path)):
        from speechgpt2.chat import SpeechGPT

        return SpeechGPT.from_pretrained(model, device, codec=codec)
    return model


def answer_turn(model: SpeechGPT, turn: Turn, mode: Mode, **options: Any) -> TimedReply:
    """Send one turn to a model and collect the events of its reply.

    Args:
        model: A `SpeechGPT`.
        turn: The user's turn.
        mode: Modalities of the turn and of the reply.
        options: Those of `SpeechGPT.conversation`.
    """
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
    return TimedReply(mode, text.strip(), transcript, np.concatenate(audio), first, time.perf_counter() - start)


def answer_question(model: SpeechGPT, trial: HeldOutQuestion, mode: Mode, **options: Any) -> EvaluatedAnswer:
    """Ask `model` one held-out question, spoken by the trial's voice or typed.

    Raises:
        UserError: The voice's engine is not installed.
    """
    question = trial.exchange.question
    turn = Turn.user(speech=voices.speak(question, trial.voice).pcm) if mode.startswith("s2") else Turn.user(question)
    return EvaluatedAnswer(**vars(answer_turn(model, turn, mode, **options)), trial=trial)


@dataclass(frozen=True)
class TimeRow:
    """Wall times of turns, one at a time.

    `first_audio` counts from the end of the question and includes the encoding of the whole question, which a live
    session does while the user speaks: it is an upper bound. `rtf` is the time of the turn ÷ the length of its speech.
    """

    mode: str = column("mode")
    n: int = column("n", "d")
    first_audio: float = column("first audio s, median", ".2f")
    first_audio_p95: float = column("95 %", ".2f")
    rtf: float = column("RTF of a turn, median", ".2f")
    rtf_p95: float = column("95 %", ".2f")


def time_rows(replies: Sequence[TimedReply]) -> list[TimeRow]:
    """One row for each mode with spoken replies; replies without audio do not count."""
    rows = []
    for mode, name in MODES.items():
        spoken = [r for r in replies if r.mode == mode and mode.endswith("s") and len(r.pcm)]
        if spoken:
            first = np.percentile([reply.first_audio for reply in spoken], [50, 95])
            rtf = np.percentile([reply.done / reply.seconds for reply in spoken], [50, 95])
            rows.append(TimeRow(name, len(spoken), *map(float, (*first, *rtf))))
    return rows
