"""Does the model's speech say what its text says, and how does it sound? With controls on the same texts.

    sg2 eval speech --asr FOLDER --limit 40

Each text is spoken by three voices: the teacher, whose speech the model learnt; the teacher through the codec; the
model. What the codec loses, the second row shows; what the model adds, the third. *Speech* counts the errors of ASR
judges: the independent one (`--asr`); PocketSphinx with a word-pair grammar of the skill's replies, in English; the
model itself, which is circular (it may understand what nobody else does) and is named so. *Voice* has DNSMOS and the
similarity to the teacher's voice, between that of the teacher to itself and that of other voices to the teacher.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from speechgpt2.asr import Recogniser, count_errors, normalise
from speechgpt2.asr.error_rate import NAMES as ERROR_NAMES
from speechgpt2.asr.own_model import OwnModel
from speechgpt2.asr.pocketsphinx import PocketSphinx
from speechgpt2.corpus.held_out import held_out_questions
from speechgpt2.curriculum import skills
from speechgpt2.curriculum.numbers import tokens
from speechgpt2.errors import UserError
from speechgpt2.eval import judges, report
from speechgpt2.eval.answers import EvaluatedAnswer, ask, load
from speechgpt2.eval.codec_systems import OwnCodec
from speechgpt2.eval.judges import Judges, Wave
from speechgpt2.eval.report import column
from speechgpt2.eval.speaker_similarity import Embedding, similarity
from speechgpt2.tts import voices
from speechgpt2.tts.voice_sets import VoiceSet, voice_set
from speechgpt2.tts.voices import Voice

DOMAIN_DRAWS = 2000  # replies of a skill that its grammar knows, besides those that are judged
OTHERS = 6  # utterances of other voices, for the lower baseline of similarity
TEACHER, MODEL = "teacher", "the model"
THROUGH = " through the codec"

Done = Callable[[], Any]
Speakers = Mapping[str, Mapping[str, Sequence[Voice]]]  # sets of voices by name and language


@dataclass(frozen=True)
class SpeechRow:
    """ASR errors of one voice against the text, and how many answers are right *as heard*."""

    lang: str = column("language")
    judge: str = column("judge")
    voice: str = column("voice")
    n: int = column("n", "d")
    error_name: str = column("errors")
    error_rate: float = column("rate ↓", ".3f")
    exact: float = column("exactly the text ↑", ".2f")
    right: float = column("right as heard ↑", ".2f")


@dataclass(frozen=True)
class VoiceRow:
    """How one voice sounds: opinion score, and similarity to the teacher's voice."""

    lang: str = column("language")
    voice: str = column("voice")
    n: int = column("n", "d")
    mos: float = column("DNSMOS ↑", ".2f")
    similarity: float = column("similarity to the teacher ↑", ".2f")


@dataclass(frozen=True)
class SpokenTexts:
    """The same texts in one language by all voices: `waves[voice][i]` says `answers[i].text`."""

    lang: str
    answers: list[EvaluatedAnswer]
    waves: dict[str, list[Wave]]


def speak_all(
    model: Any, answers: Iterable[EvaluatedAnswer], teacher: VoiceSet, speakers: Speakers
) -> list[SpokenTexts]:
    """Speak the texts of `answers` by the controls, each with and without the codec, beside the model's own speech.

    The controls are the teacher's first voice and the voices of `speakers` in turn. Texts that the teacher cannot say
    are left out.

    Raises:
        UserError: The engine of a voice is not installed.
    """
    codec, result = OwnCodec("codec", model.codec), []
    groups: dict[str, list[tuple[EvaluatedAnswer, Wave]]] = {}
    for answer in answers:
        if tokens(answer.text, answer.lang) and (pcm := _speak(answer, teacher.assistant[answer.lang][0])) is not None:
            groups.setdefault(answer.lang, []).append((answer, pcm))
    for lang, pairs in sorted(groups.items()):
        texts = [answer.text for answer, _ in pairs]
        controls = {TEACHER: [pcm for _, pcm in pairs]} | {
            f"{name} voices": [voices.speak(text, bank[lang][i % len(bank[lang])]).pcm for i, text in enumerate(texts)]
            for name, bank in speakers.items()
        }
        waves: dict[str, list[Wave]] = {}
        for name, said in controls.items():
            waves |= {name: said, name + THROUGH: [codec.reconstruct(pcm).pcm for pcm in said]}
        waves[MODEL] = [answer.pcm for answer, _ in pairs]
        result.append(SpokenTexts(lang, [answer for answer, _ in pairs], waves))
    return result


def _speak(answer: EvaluatedAnswer, voice: Voice) -> Wave | None:
    try:
        return voices.speak(answer.text, voice).pcm
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        return None


def speech_rows(model: Any, spoken: Sequence[SpokenTexts], panel: Judges, done: Done = lambda: None) -> list[SpeechRow]:
    """Count the errors of every ASR judge in every voice; the independent judge first. `done` follows each row."""
    rows: list[SpeechRow] = []
    itself = OwnModel(model, "the model itself (circular)")
    for group in spoken:
        if panel.asr is not None and panel.knows(group.lang):
            rows += _rows(group, panel.asr.name, _recognise(panel.asr, group.lang), done)
    for group in spoken:
        if group.lang == "en" and (listen := _sphinx(group.answers)) is not None:
            rows += _rows(group, "pocketsphinx", listen, done)
    for group in spoken:
        try:
            rows += _rows(group, itself.name, _recognise(itself, group.lang), done)
        except UserError:  # a model that writes no transcripts
            break
    return rows


Listen = Callable[
    [EvaluatedAnswer, Wave], str | None
]  # what is understood; None where the judge does not know the words


def _recognise(recogniser: Recogniser, lang: str) -> Listen:
    return lambda answer, pcm: recogniser.transcribe(pcm, lang).text


def _sphinx(answers: Sequence[EvaluatedAnswer]) -> Listen | None:
    """PocketSphinx with one grammar for each skill of the English `answers`; None where it is not installed."""
    recognisers: dict[str, PocketSphinx] = {}
    try:
        for skill in dict.fromkeys(answer.skill for answer in answers):
            rng = random.Random(f"domain/{skill}")
            domain = [tokens(skills.draw_exchange(rng, "en", skill).reply, "en") for _ in range(DOMAIN_DRAWS)]
            recognisers[skill] = PocketSphinx([*domain, *(tokens(a.text, "en") for a in answers if a.skill == skill)])
    except UserError:
        return None

    def listen(answer: EvaluatedAnswer, pcm: Wave) -> str | None:
        recogniser = recognisers[answer.skill]
        return recogniser.transcribe(pcm, "en").text if recogniser.knows(tokens(answer.text, "en")) else None

    return listen


def _rows(group: SpokenTexts, judge: str, listen: Listen, done: Done) -> list[SpeechRow]:
    """One row for each voice, over the texts that the judge knows; nothing is understood in silence."""
    rows = []
    for voice, waves in group.waves.items():
        transcripts = [(a, listen(a, pcm) if len(pcm) else "") for a, pcm in zip(group.answers, waves, strict=True)]
        known = [(answer, text) for answer, text in transcripts if text is not None]
        if known:
            rows.append(_row(judge, voice, known))
        done()
    return rows


def _row(judge: str, voice: str, transcripts: Sequence[tuple[EvaluatedAnswer, str]]) -> SpeechRow:
    lang = transcripts[0][0].lang
    found = count_errors([answer.text for answer, _ in transcripts], [text for _, text in transcripts], lang)
    joint = "" if lang == "zh" else " "
    right = [skills.is_correct(a.trial.exchange, joint.join(normalise(text, lang))) for a, text in transcripts]
    name = ERROR_NAMES.get(lang, "errors")
    return SpeechRow(lang, judge, voice, len(transcripts), name, found.rate, found.exact_rate, float(np.mean(right)))


def voice_rows(
    spoken: Sequence[SpokenTexts], panel: Judges, teacher: VoiceSet, done: Done = lambda: None
) -> list[VoiceRow]:
    """Opinion scores and similarity of every voice; none without judges. `done` follows each row.

    The last row of each language is the lower baseline of similarity: held-out voices of the teacher's kind.
    """
    rows: list[VoiceRow] = []
    if panel.mos is None and panel.speaker is None:
        return rows
    for group in spoken:
        target = panel.embed(group.waves[TEACHER])
        for voice, waves in group.waves.items():
            close = _to_teacher(target if voice == TEACHER else panel.embed(waves), target, itself=voice == TEACHER)
            rows.append(VoiceRow(group.lang, voice, len(waves), panel.opinion(waves), close))
            done()
        others = teacher.held_out[group.lang][:OTHERS]
        if panel.speaker is not None:
            texts = [group.answers[i % len(group.answers)].text for i in range(len(others))]
            said = [voices.speak(text, voice).pcm for text, voice in zip(texts, others, strict=True)]
            close = _to_teacher(panel.embed(said), target, itself=False)
            rows.append(VoiceRow(group.lang, "other voices", len(said), float("nan"), close))
    return rows


def _to_teacher(embeddings: Sequence[Embedding | None], target: Sequence[Embedding | None], itself: bool) -> float:
    """Mean similarity to the teacher's utterances; of the teacher to its other ones."""
    pairs = [(a, b) for i, a in enumerate(embeddings) for j, b in enumerate(target) if not (itself and i == j)]
    return similarity(pairs)


def main(
    model: Any = "mini",
    n: int = 40,
    out: str | Path | None = None,
    asr: str | Path | None = None,
    seed: int = 0,
    threads: int = 1,
    teacher: VoiceSet | None = None,
    speakers: Speakers | None = None,
    device: str = "cpu",
) -> dict[str, list[Any]]:
    """Type `n` held-out questions in each language, evaluate the spoken answers, print the tables, return their rows.

    Args:
        model: A name, a folder, or a `SpeechGPT`.
        n: Questions in each language.
        out: A folder for speech.json and speech.md.
        asr: The ASR judge, as `asr.load` takes it.
        seed: Of the questions.
        threads: CPU threads of the judges.
        teacher: The set of voices that the model learnt to speak with; by default the classic one.
        speakers: Sets of held-out voices that say the same texts, as further controls.
        device: Where the model computes.

    Raises:
        UserError: A model, a judge or a voice cannot be used.
    """
    console, target, panel = Console(), report.folder(out), judges.load(asr, threads)
    talker = load(model, device)
    with Progress(console=console, transient=True) as progress:
        trials = progress.track(held_out_questions(2 * n, seed), description="answering")
        answers = [ask(talker, trial, "t2s") for trial in trials]
        task = progress.add_task("judging", total=None)
        tables = evaluate(talker, answers, panel, teacher, speakers, lambda: progress.advance(task))
    report.show_all(tables, panel.notes, console)
    if target is not None:
        judge, records = panel.asr.name if panel.asr else None, [answer.record() for answer in answers]
        report.save_json(
            target / "speech.json", tables=tables, asr=judge, notes=panel.notes, seed=seed, answers=records
        )
        (target / "speech.md").write_text(report.document(tables, panel.notes), encoding="utf-8")
    return tables


def evaluate(
    model: Any,
    answers: Iterable[EvaluatedAnswer],
    panel: Judges,
    teacher: VoiceSet | None = None,
    speakers: Speakers | None = None,
    done: Done = lambda: None,
) -> dict[str, list[Any]]:
    """The tables *Speech* and *Voice* of spoken answers; see `main`. Errors: `UserError`."""
    teacher = teacher or voice_set("classic")
    spoken = speak_all(model, answers, teacher, speakers or {})
    return {"Speech": speech_rows(model, spoken, panel, done), "Voice": voice_rows(spoken, panel, teacher, done)}
