"""Spoken question answering: a model answers held-out questions, and what it generates is evaluated.

    sg2 eval mini --limit 200 --asr FOLDER --real-speech FOLDER --out results/

The tables: *Answers* (share of correct answers by speakers, skill and language; errors of the transcript of the
question), *Time*, *End of turn* (does the model recognise whether a question is complete?), *Speech* and *Voice*
(`eval.speech`), *Rejection* (`eval.rejection`), and with recordings *People* (`eval.transcripts`). Nothing is
teacher-forced: with the audio of the correct reply as input, a model that cannot add gets every sum right. The voices
that ask occur in no training data.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from speechgpt2.asr import count_errors
from speechgpt2.corpus.held_out import HeldOutQuestion, held_out_questions
from speechgpt2.curriculum.skills import SKILLS, check_skills
from speechgpt2.eval import judges, rejection, report, speech_sets
from speechgpt2.eval import speech as speech_evaluation
from speechgpt2.eval.answers import MODES, EvaluatedAnswer, answer_question, load_model, time_rows
from speechgpt2.eval.end_of_turn import end_of_turn_rows
from speechgpt2.eval.report import column
from speechgpt2.eval.transcripts import transcript_rows
from speechgpt2.lm.prompt import Prompt
from speechgpt2.tts.voice_sets import VoiceSet
from speechgpt2.tts.voices import HELD_OUT_VOICES, Voice, vary_voice
from speechgpt2.types import Mode

SPEAKERS = {"classic": HELD_OUT_VOICES}  # sets of voices that ask, by the name that tables give them
TYPED = "–"  # replaces the speakers' name in the rows of typed questions


@dataclass(frozen=True)
class AnswerRow:
    """Share of answers with correct text, and the transcript's errors per word (character) of the question.

    The error rate is nan where questions are typed, and for a model that writes no transcripts.
    """

    mode: str = column("mode")
    asked_by: str = column("asked by")
    lang: str = column("language")
    skill: str = column("skill")
    n: int = column("n", "d")
    right: float = column("right ↑", ".2f")
    transcript_errors: float = column("transcript errors ↓", ".3f")


def answer_rows(answers: Iterable[tuple[str, EvaluatedAnswer]]) -> list[AnswerRow]:
    """Summarise pairs of (name of the speakers, answer) by mode, speakers, language and skill; "all" is every skill."""
    groups: dict[tuple[Mode, str, str, str], list[EvaluatedAnswer]] = {}
    for name, answer in answers:
        for skill in (answer.skill, "all"):
            groups.setdefault((answer.mode, name, answer.lang, skill), []).append(answer)
    modes, skills = list(MODES), [*SKILLS, "all"]
    names = list(dict.fromkeys(key[1] for key in groups))

    def order(key: tuple[Mode, str, str, str]) -> tuple[int, int, str, int]:
        return modes.index(key[0]), names.index(key[1]), key[2], skills.index(key[3])

    rows = []
    for key in sorted(groups, key=order):
        group, (mode, name, lang, skill) = groups[key], key
        right = float(np.mean([answer.right for answer in group]))
        rows.append(AnswerRow(MODES[mode], name, lang, skill, len(group), right, transcript_errors(group)))
    return rows


def transcript_errors(answers: Sequence[EvaluatedAnswer]) -> float:
    """The error rate of the transcripts of spoken questions in one language; a missing transcript is all errors.

    nan for typed questions and for a model that writes no transcripts.
    """
    spoken = [answer for answer in answers if answer.mode.startswith("s2")]
    if all(answer.transcript is None for answer in spoken):
        return float("nan")
    texts = [answer.trial.exchange.question for answer in spoken]
    return count_errors(texts, [answer.transcript or "" for answer in spoken], spoken[0].lang).rate


def trials_by(
    speakers: Mapping[str, Sequence[Voice]], trials: Sequence[HeldOutQuestion], seed: int
) -> list[HeldOutQuestion]:
    """The same questions with the voices of `speakers`, by language."""
    if speakers is HELD_OUT_VOICES:
        return list(trials)
    rng = random.Random(f"speakers/{seed}")
    return [replace(t, voice=vary_voice(rng.choice(speakers[t.exchange.lang]), rng)) for t in trials]


def main(
    model: Any = "mini",
    n: int = 200,
    out: str | Path | None = None,
    typed: bool = True,
    speech: bool = True,
    seed: int = 0,
    greedy: bool = False,
    asr: str | Path | None = None,
    real_speech: str | Path | None = None,
    threads: int = 1,
    speakers: Mapping[str, Mapping[str, Sequence[Voice]]] = SPEAKERS,
    teacher: VoiceSet | None = None,
    device: str = "cpu",
    skills: Sequence[str] = (),
) -> dict[str, list[Any]]:
    """Ask a model `n` held-out questions, print the tables, return their rows by the tables' titles.

    Args:
        model: A name, a folder, or a `SpeechGPT`.
        n: Questions, every second in Mandarin; also the most recordings of each real set.
        out: A folder for spoken_qa.json and spoken_qa.md.
        typed: Also type the questions, for spoken and for typed answers.
        speech: Also evaluate the speech of the answers.
        seed: Seed of the questions.
        greedy: Choose the likeliest token instead of sampling as the released model does.
        asr: The ASR judge, as `asr.load` takes it.
        real_speech: A folder of recordings, as `speech_sets.recorded` takes it.
        threads: CPU threads of the judges.
        speakers: Sets of held-out voices that ask, by name and language.
        teacher: The set of voices that the model learnt to speak with; by default the classic one.
        device: Where the model computes.
        skills: Skills to ask for; by default those of `held_out_questions`.

    Raises:
        UserError: A model, a judge, a skill, a voice or the folder cannot be used.
    """
    console, target, panel = Console(), report.make_folder(out), judges.load(asr, threads)
    check_skills(skills)
    talker, trials = load_model(model, device), held_out_questions(n, seed, skills)
    people = {}
    if real_speech is not None:
        people = speech_sets.recorded(real_speech, n, join_words=False, keeps=partial(in_vocabulary, talker.lm.prompt))
    asking = [(name, "s2s", trial) for name in speakers for trial in trials_by(speakers[name], trials, seed)]
    asking += [(TYPED, mode, trial) for mode in ("t2s", "t2t") for trial in trials if typed]
    with Progress(console=console, transient=True) as progress:
        options = _sampling(greedy, talker)
        steps = progress.track(asking, description="answering")
        answers = [(name, answer_question(talker, trial, mode, **options)) for name, mode, trial in steps]  # type: ignore[arg-type]
        first = [answer for name, answer in answers if name == next(iter(speakers))]
        tables: dict[str, list[Any]] = {"Answers": answer_rows(answers), "Time": time_rows([a for _, a in answers])}
        task = progress.add_task("end of turn", total=len(first))
        if rows := end_of_turn_rows(talker, [a.trial for a in first], lambda: progress.advance(task)):
            tables["End of turn"] = rows
        if speech:
            task = progress.add_task("judging", total=None)
            tables |= speech_evaluation.evaluate(talker, first, panel, teacher, advance=lambda: progress.advance(task))
        without_question = rejection.draw_inputs(seed=seed)
        task = progress.add_task("no questions", total=sum(map(len, without_question.values())))
        tables["Rejection"] = rejection.rejection_rows(talker, without_question, lambda: progress.advance(task))
        if people:
            tables["People"] = transcript_rows(talker, people, panel)
    settings = {"seed": seed, "greedy": greedy, "asr": panel.asr.name if panel.asr else None}
    records = [{"asked_by": name, **answer.record()} for name, answer in answers]
    content = {"tables": tables, **settings, "answers": records}
    report.publish_evaluation("spoken_qa", tables, panel.notes, console, target, **content)
    return tables


def in_vocabulary(prompt: Prompt, word: str) -> bool:
    """Return whether a word is English, or each of its characters is a token of the model."""
    return word.isascii() or all(len(prompt.encode(character)) == 1 for character in word)


def _sampling(greedy: bool, model: Any) -> dict[str, Any]:
    if not greedy:
        return {}
    from speechgpt2.lm.sampling import SamplingParams

    return {"sampling": SamplingParams.greedy(device=model.lm.device)}
