"""Does it hear, answer and speak? The held-out questions put to a whole model, judged on what it produces running free.

    sg2 eval mini --limit 200 --out results/

Three tables: answers (right or not, by skill and language; the transcript of the question), speech (does it say what the
text says; the teacher voice on the same texts beside it), and time. Nothing is teacher-forced: with the true reply audio as
input a model that cannot add gets every sum right. Questions are asked by voices that no training material holds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from speechgpt2.data import dialogues, voices
from speechgpt2.data.dialogues import Trial
from speechgpt2.data.numbers import tokens
from speechgpt2.eval import report
from speechgpt2.eval.recognise import errors
from speechgpt2.eval.report import column
from speechgpt2.types import SAMPLE_RATE, AudioDelta, Mode, TextDelta, Transcript, Turn

MODES: dict[Mode, str] = {
    "s2s": "spoken → spoken",
    "t2s": "typed → spoken",
    "t2t": "typed → typed",
}


@dataclass(frozen=True)
class Answer:
    """What the model made of one trial. Times are wall seconds from the moment it was handed the whole question."""

    trial: Trial
    mode: Mode
    text: str
    transcript: str | None
    pcm: NDArray[np.float32] = field(repr=False)
    first_audio: float = float("nan")
    done: float = float("nan")

    @property
    def right(self) -> bool:
        return dialogues.right(self.trial.exchange, self.text)


@dataclass(frozen=True)
class AnswerRow:
    """How often the text of the answer is right; how well the question was heard (nan where it was typed)."""

    mode: str = column("mode")
    lang: str = column("language")
    skill: str = column("skill")
    n: int = column("n", "d")
    right: float = column("right ↑", ".2f")
    transcript_accuracy: float = column("transcript words ↑", ".3f")


@dataclass(frozen=True)
class TimeRow:
    """Wall times of spoken turns, one at a time. `first_audio` counts from the end of the question and holds the encoding of
    the whole question, which a live session does while the user speaks: it is an upper bound."""

    mode: str = column("mode")
    n: int = column("n", "d")
    first_audio: float = column("first audio s, median", ".2f")
    first_audio_p95: float = column("95 %", ".2f")
    rtf: float = column("turn / its speech (RTF), median", ".2f")
    rtf_p95: float = column("95 %", ".2f")


def ask(model: Any, trial: Trial, mode: Mode) -> Answer:
    """Put one question to `model` (a `SpeechGPT`) and collect its events."""
    question = trial.exchange.question
    spoken = mode.startswith("s2")
    turn = Turn.user(speech=voices.speak(question, trial.voice).pcm) if spoken else Turn.user(question)
    text, transcript, audio, first = "", None, [np.zeros(0, np.float32)], float("nan")
    start = time.perf_counter()
    for event in model.chat([turn], mode=mode, stream=True):
        if isinstance(event, TextDelta):
            text += event.text
        elif isinstance(event, Transcript):
            transcript = event.text
        elif isinstance(event, AudioDelta):
            first = time.perf_counter() - start if len(audio) == 1 else first
            audio.append(np.asarray(event.pcm, dtype=np.float32))
    done = time.perf_counter() - start
    return Answer(trial, mode, text.strip(), transcript, np.concatenate(audio), first, done)


def answer_rows(answers: Iterable[Answer]) -> list[AnswerRow]:
    """Per mode and language: a row for each skill, then one for all."""
    groups: dict[tuple[Mode, str, str], list[Answer]] = {}
    for answer in answers:
        exchange = answer.trial.exchange
        for skill in (exchange.skill, "all"):
            groups.setdefault((answer.mode, exchange.lang, skill), []).append(answer)
    order = [*dialogues.SKILLS, "all"]
    keys = sorted(groups, key=lambda key: (list(MODES).index(key[0]), key[1], order.index(key[2])))
    return [
        AnswerRow(
            MODES[mode],
            lang,
            skill,
            n=len(groups[mode, lang, skill]),
            right=float(np.mean([answer.right for answer in groups[mode, lang, skill]])),
            transcript_accuracy=transcript_accuracy(groups[mode, lang, skill]),
        )
        for mode, lang, skill in keys
    ]


def transcript_accuracy(answers: Sequence[Answer]) -> float:
    """1 − errors per word of the spoken questions (characters in Mandarin); a missing transcript is all errors."""
    wrong = total = 0
    for answer in answers:
        if answer.mode.startswith("s2"):
            lang = answer.trial.exchange.lang
            said = tokens(answer.trial.exchange.question, lang)
            wrong += errors(said, tokens(answer.transcript or "", lang))
            total += len(said)
    return 1 - wrong / total if total else float("nan")


def time_rows(answers: Sequence[Answer]) -> list[TimeRow]:
    """One row per mode with speech; answers without sound are left out."""
    rows = []
    for mode, name in MODES.items():
        spoken = [a for a in answers if a.mode == mode and len(a.pcm)]
        if spoken:
            first = np.percentile([a.first_audio for a in spoken], [50, 95])
            rtf = np.percentile([a.done / (len(a.pcm) / SAMPLE_RATE) for a in spoken], [50, 95])
            rows.append(TimeRow(name, len(spoken), *map(float, (*first, *rtf))))
    return rows


def main(
    model: Any = "mini",
    n: int = 200,
    out: str | Path | None = None,
    typed: bool = True,
    speech: bool = True,
    seed: int = 0,
) -> dict[str, list[Any]]:
    """Put `n` held-out questions to a model (a name, a folder, or a `SpeechGPT`), print the tables, return their rows.

    `typed`: also type the questions, for spoken and for typed answers. `speech`: also judge the sound of the answers
    (pocketsphinx for English). `out`: a folder for dialogue.json and dialogue.md. Errors: `UserError`.
    """
    console, target = Console(), report.folder(out)
    talker = load(model)
    trials = dialogues.evaluation_set(n, seed)
    modes: list[Mode] = ["s2s", "t2s", "t2t"] if typed else ["s2s"]
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("answering", total=len(modes) * len(trials))
        answers = _ask_all(talker, trials, modes, lambda: progress.advance(task))
    tables = {"Answers": answer_rows(answers), "Time": time_rows(answers)}
    if speech:
        from speechgpt2.eval.spoken import speech_rows

        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("listening", total=None)
            tables["Speech"] = speech_rows(talker, answers, lambda: progress.advance(task))
    for title, rows in tables.items():
        report.show(title, rows, console)
    if target is not None:
        everything = [_record(answer) for answer in answers]
        report.save_json(target / "dialogue.json", tables=tables, seed=seed, answers=everything)
        text = "\n".join(f"**{title}**\n\n{report.markdown(rows)}" for title, rows in tables.items())
        (target / "dialogue.md").write_text(text, encoding="utf-8")
    return tables


def _ask_all(model: Any, trials: Sequence[Trial], modes: Sequence[Mode], done: Callable[[], Any]) -> list[Answer]:
    answers = []
    for mode in modes:
        for trial in trials:
            answers.append(ask(model, trial, mode))
            done()
    return answers


def _record(answer: Answer) -> dict[str, Any]:
    """An answer for the JSON: enough to read what went wrong."""
    exchange = answer.trial.exchange
    return {
        "mode": answer.mode,
        "skill": exchange.skill,
        "lang": exchange.lang,
        "voice": answer.trial.voice.id,
        "question": exchange.question,
        "heard": answer.transcript,
        "answer": answer.text,
        "right": answer.right,
        "seconds": round(len(answer.pcm) / SAMPLE_RATE, 2),
        "first_audio": answer.first_audio,
        "done": answer.done,
    }


def load(model: Any) -> Any:
    """The `SpeechGPT` of that name or folder; a loaded one as it is. Errors: `UserError`."""
    if isinstance(model, (str, Path)):
        from speechgpt2.chat import SpeechGPT

        return SpeechGPT.from_pretrained(model)
    return model
