"""Does the model's speech say what its text says, and how does it sound? Controls speak the same texts.

    sg2 eval speech --asr FOLDER --limit 40

Each text is spoken by three voices: the teacher, whose speech the model learnt; the teacher through the codec; the
model. The second row shows the loss of the codec, the third adds that of the model. *Speech* counts the errors of ASR
judges: the independent one (`--asr`); PocketSphinx with a word-pair grammar of the skill's replies, in English; the
model itself, marked as circular, since it may understand its own speech better than anybody else. *Voice* has DNSMOS
and the similarity to the teacher's voice, with two baselines: the teacher's utterances, and other voices.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from speechgpt2.asr import Recogniser, count_errors, normalise
from speechgpt2.asr.error_rate import error_name
from speechgpt2.asr.own_model import OwnModel
from speechgpt2.asr.pocketsphinx import PocketSphinx
from speechgpt2.corpus.held_out import held_out_questions
from speechgpt2.curriculum import skills
from speechgpt2.curriculum.numbers import tokens
from speechgpt2.errors import UserError
from speechgpt2.eval import judges, report
from speechgpt2.eval.answers import EvaluatedAnswer, answer_question, load_model
from speechgpt2.eval.codec_systems import OwnCodec
from speechgpt2.eval.judges import Judges, Wave
from speechgpt2.eval.report import column
from speechgpt2.eval.speaker_similarity import Embedding, similarity
from speechgpt2.tts import voices
from speechgpt2.tts.voice_sets import VoiceSet, voice_set
from speechgpt2.tts.voices import Voice

DOMAIN_DRAWS = 2000  # random replies of a skill that its grammar knows, besides those that are evaluated
OTHER_UTTERANCES = 6  # utterances of other voices, for the lower baseline of similarity
TEACHER, MODEL = "teacher", "the model"
THROUGH_CODEC = " through the codec"

Advance = Callable[[], Any]  # called after each row, for a progress bar
Speakers = Mapping[str, Mapping[str, Sequence[Voice]]]  # sets of voices by name and language


@dataclass(frozen=True)
class SpeechRow:
    """ASR errors of one voice against the text, and the share of transcripts that answer the question."""

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
    """Let the controls speak the texts of `answers`, each with and without the codec.

    The controls are the teacher's first voice and the voices of `speakers` in turn. Texts that the teacher cannot
    pronounce are left out.

    Args:
        model: The `SpeechGPT` that gave the answers.
        answers: Its spoken answers.
        teacher: The voices that it learnt to speak with.
        speakers: Sets of further voices, by name and language.

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
        for name, originals in controls.items():
            waves |= {name: originals, name + THROUGH_CODEC: [codec.reconstruct(pcm).pcm for pcm in originals]}
        waves[MODEL] = [answer.pcm for answer, _ in pairs]
        result.append(SpokenTexts(lang, [answer for answer, _ in pairs], waves))
    return result


def _speak(answer: EvaluatedAnswer, voice: Voice) -> Wave | None:
    """Speak the text of an answer; None if the voice cannot pronounce it."""
    try:
        return voices.speak(answer.text, voice).pcm
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        return None


def speech_rows(
    model: Any, spoken: Sequence[SpokenTexts], panel: Judges, advance: Advance = lambda: None
) -> list[SpeechRow]:
    """Count the errors of every ASR judge in every voice; the independent judge first."""
    rows: list[SpeechRow] = []
    own = OwnModel(model, "the model itself (circular)")
    for texts in spoken:
        if panel.asr is not None and panel.knows(texts.lang):
            rows += _rows(texts, panel.asr.name, _transcriber(panel.asr, texts.lang), advance)
    for texts in spoken:
        if texts.lang == "en" and (transcribe := _sphinx(texts.answers)) is not None:
            rows += _rows(texts, "pocketsphinx", transcribe, advance)
    for texts in spoken:
        try:
            rows += _rows(texts, own.name, _transcriber(own, texts.lang), advance)
        except UserError:  # a model that writes no transcripts
            break
    return rows


# The transcript of a wave that says an answer; None if the judge does not know the answer's words.
Transcribe = Callable[[EvaluatedAnswer, Wave], str | None]


def _transcriber(recogniser: Recogniser, lang: str) -> Transcribe:
    return lambda answer, pcm: recogniser.transcribe(pcm, lang).text


def _sphinx(answers: Sequence[EvaluatedAnswer]) -> Transcribe | None:
    """PocketSphinx with one grammar for each skill of the English `answers`; None where it is not installed."""
    recognisers: dict[str, PocketSphinx] = {}
    try:
        for skill in dict.fromkeys(answer.skill for answer in answers):
            rng = random.Random(f"domain/{skill}")
            domain = [tokens(skills.draw_exchange(rng, "en", skill).reply, "en") for _ in range(DOMAIN_DRAWS)]
            recognisers[skill] = PocketSphinx([*domain, *(tokens(a.text, "en") for a in answers if a.skill == skill)])
    except UserError:
        return None

    def transcribe(answer: EvaluatedAnswer, pcm: Wave) -> str | None:
        recogniser = recognisers[answer.skill]
        return recogniser.transcribe(pcm, "en").text if recogniser.knows(tokens(answer.text, "en")) else None

    return transcribe


def _rows(texts: SpokenTexts, judge: str, transcribe: Transcribe, advance: Advance) -> list[SpeechRow]:
    """One row for each voice, over the texts that the judge knows; without audio the transcript is empty."""
    rows = []
    for voice, waves in texts.waves.items():
        transcripts = [(a, transcribe(a, pcm) if len(pcm) else "") for a, pcm in zip(texts.answers, waves, strict=True)]
        known = [(answer, text) for answer, text in transcripts if text is not None]
        if known:
            rows.append(_row(judge, voice, known))
        advance()
    return rows


def _row(judge: str, voice: str, transcripts: Sequence[tuple[EvaluatedAnswer, str]]) -> SpeechRow:
    lang = transcripts[0][0].lang
    errors = count_errors([answer.text for answer, _ in transcripts], [text for _, text in transcripts], lang)
    space = "" if lang == "zh" else " "
    right = [skills.is_correct(a.trial.exchange, space.join(normalise(text, lang))) for a, text in transcripts]
    return SpeechRow(
        lang=lang,
        judge=judge,
        voice=voice,
        n=len(transcripts),
        error_name=error_name(lang),
        error_rate=errors.rate,
        exact=errors.exact_rate,
        right=float(np.mean(right)),
    )


def voice_rows(
    spoken: Sequence[SpokenTexts], panel: Judges, teacher: VoiceSet, advance: Advance = lambda: None
) -> list[VoiceRow]:
    """Opinion scores and similarity of every voice; none without judges.

    The last row of each language is the lower baseline of similarity: held-out voices of the teacher's kind.
    """
    rows: list[VoiceRow] = []
    if panel.mos is None and panel.speaker is None:
        return rows
    for texts in spoken:
        target = panel.embed(texts.waves[TEACHER])
        for voice, waves in texts.waves.items():
            embeddings = target if voice == TEACHER else panel.embed(waves)
            mean = _similarity_to_teacher(embeddings, target, same_clips=voice == TEACHER)
            rows.append(VoiceRow(texts.lang, voice, len(waves), panel.mean_opinion(waves), mean))
            advance()
        if panel.speaker is not None:
            others = teacher.held_out[texts.lang][:OTHER_UTTERANCES]
            waves = [voices.speak(answer.text, voice).pcm for voice, answer in zip(others, cycle(texts.answers))]
            mean = _similarity_to_teacher(panel.embed(waves), target, same_clips=False)
            rows.append(VoiceRow(texts.lang, "other voices", len(waves), float("nan"), mean))
    return rows


def _similarity_to_teacher(
    embeddings: Sequence[Embedding | None], target: Sequence[Embedding | None], same_clips: bool
) -> float:
    """Mean similarity to the teacher's utterances; `same_clips` if these are compared with each other."""
    pairs = [(a, b) for i, a in enumerate(embeddings) for j, b in enumerate(target) if not (same_clips and i == j)]
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
        seed: Seed of the questions.
        threads: CPU threads of the judges.
        teacher: The set of voices that the model learnt to speak with; by default the classic one.
        speakers: Sets of held-out voices that say the same texts, as further controls.
        device: Where the model computes.

    Raises:
        UserError: A model, a judge or a voice cannot be used.
    """
    console, target, panel = Console(), report.make_folder(out), judges.load(asr, threads)
    talker = load_model(model, device)
    with Progress(console=console, transient=True) as progress:
        trials = progress.track(held_out_questions(2 * n, seed), description="answering")
        answers = [answer_question(talker, trial, "t2s") for trial in trials]
        task = progress.add_task("judging", total=None)
        tables = evaluate(talker, answers, panel, teacher, speakers, lambda: progress.advance(task))
    judge, records = panel.asr.name if panel.asr else None, [answer.record() for answer in answers]
    content = {"tables": tables, "asr": judge, "seed": seed, "answers": records}
    report.publish_evaluation("speech", tables, panel.notes, console, target, **content)
    return tables


def evaluate(
    model: Any,
    answers: Iterable[EvaluatedAnswer],
    panel: Judges,
    teacher: VoiceSet | None = None,
    speakers: Speakers | None = None,
    advance: Advance = lambda: None,
) -> dict[str, list[Any]]:
    """The tables *Speech* and *Voice* of spoken answers; see `main`. Errors: `UserError`."""
    teacher = teacher or voice_set("classic")
    spoken = speak_all(model, answers, teacher, speakers or {})
    return {"Speech": speech_rows(model, spoken, panel, advance), "Voice": voice_rows(spoken, panel, teacher, advance)}
