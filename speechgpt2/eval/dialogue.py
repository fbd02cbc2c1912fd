"""Does it hear, answer and speak? The held-out questions put to a whole model, judged on what it produces running free.

    sg2 eval mini --limit 200 --out results/

Four tables: answers (right or not, by skill and language; the transcript of the question), time, endings (does it know
a whole question from one that breaks off), and speech (does it say what the text says; the teacher voice on the same
texts beside it). Nothing is teacher-forced: with the true reply
audio as input a model that cannot add gets every sum right. Questions are asked by voices that no training material
holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from speechgpt2.asr.error_rate import edit_distance
from speechgpt2.corpus.held_out import held_out_questions
from speechgpt2.curriculum.numbers import tokens
from speechgpt2.curriculum.skills import SKILLS
from speechgpt2.eval import report
from speechgpt2.eval.answers import MODES, Answer, ask, load, time_rows
from speechgpt2.eval.endings import ending_rows
from speechgpt2.eval.report import column
from speechgpt2.eval.spoken import speech_rows
from speechgpt2.types import Mode


@dataclass(frozen=True)
class AnswerRow:
    """How often the text of the answer is right; how well the question was heard (nan where it was typed)."""

    mode: str = column("mode")
    lang: str = column("language")
    skill: str = column("skill")
    n: int = column("n", "d")
    right: float = column("right ↑", ".2f")
    transcript_accuracy: float = column("transcript words ↑", ".3f")


def answer_rows(answers: Iterable[Answer]) -> list[AnswerRow]:
    """Per mode and language: a row for each skill, then one for all."""
    groups: dict[tuple[Mode, str, str], list[Answer]] = {}
    for answer in answers:
        for skill in (answer.skill, "all"):
            groups.setdefault((answer.mode, answer.lang, skill), []).append(answer)
    modes, skills = list(MODES), [*SKILLS, "all"]
    rows = []
    for mode, lang, skill in sorted(groups, key=lambda key: (modes.index(key[0]), key[1], skills.index(key[2]))):
        group = groups[mode, lang, skill]
        right = float(np.mean([answer.right for answer in group]))
        rows.append(AnswerRow(MODES[mode], lang, skill, len(group), right, transcript_accuracy(group)))
    return rows


def transcript_accuracy(answers: Sequence[Answer]) -> float:
    """1 − errors per word of the spoken questions (characters in Mandarin); nan for a model that writes no transcripts.

    Where there are some, a missing one is all errors.
    """
    spoken = [answer for answer in answers if answer.mode.startswith("s2")]
    if all(answer.transcript is None for answer in spoken):
        return float("nan")
    wrong = total = 0
    for answer in spoken:
        said = tokens(answer.trial.exchange.question, answer.lang)
        wrong += edit_distance(said, tokens(answer.transcript or "", answer.lang))
        total += len(said)
    return 1 - wrong / total


def main(
    model: Any = "mini",
    n: int = 200,
    out: str | Path | None = None,
    typed: bool = True,
    speech: bool = True,
    seed: int = 0,
    greedy: bool = False,
) -> dict[str, list[Any]]:
    """Put `n` held-out questions to a model (a name, a folder, or a `SpeechGPT`), print the tables, return their rows.

    `typed`: also type the questions, for spoken and for typed answers. `speech`: also judge the sound of the answers
    (pocketsphinx for English). `greedy`: the likeliest token in place of the released sampling. `out`: a folder for
    dialogue.json and dialogue.md. Errors: `UserError`.
    """
    console, target, talker = Console(), report.folder(out), load(model)
    modes: list[Mode] = ["s2s", "t2s", "t2t"] if typed else ["s2s"]
    with Progress(console=console, transient=True) as progress:
        answers = _ask_all(talker, n, seed, modes, greedy, progress)
        tables: dict[str, list[Any]] = {"Answers": answer_rows(answers), "Time": time_rows(answers)}
        task = progress.add_task("asking halves", total=n)
        trials = [answer.trial for answer in answers if answer.mode == "s2s"]
        if endings := ending_rows(talker, trials, lambda: progress.advance(task)):
            tables["Endings"] = endings
        if speech:
            task = progress.add_task("listening", total=None)
            tables["Speech"] = speech_rows(talker, answers, lambda: progress.advance(task))
    for title, rows in tables.items():
        report.show(title, rows, console)
    if target is not None:
        records = [answer.record() for answer in answers]
        report.save_json(target / "dialogue.json", tables=tables, seed=seed, greedy=greedy, answers=records)
        text = "\n".join(f"**{title}**\n\n{report.markdown(rows)}" for title, rows in tables.items())
        (target / "dialogue.md").write_text(text, encoding="utf-8")
    return tables


def _ask_all(model: Any, n: int, seed: int, modes: Sequence[Mode], greedy: bool, progress: Progress) -> list[Answer]:
    options = {}
    if greedy:
        from speechgpt2.lm.sampling import SamplingParams

        options["sampling"] = SamplingParams.greedy()
    trials = held_out_questions(n, seed)
    steps = progress.track([(mode, trial) for mode in modes for trial in trials], description="answering")
    return [ask(model, trial, mode, **options) for mode, trial in steps]
