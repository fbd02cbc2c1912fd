"""Build the two synthetic corpora: speech of many voices for the codec, dialogues for the language model.

    sg2 data codec-corpus OUT --hours 6 --real-speech DIR
    sg2 data dialogue-corpus OUT --exchanges 24000

Every part is drawn from a generator seeded by (seed, part). So a killed build can be resumed, and the result does not
depend on the number of workers.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from speechgpt2.corpus.held_out import held_out_questions
from speechgpt2.corpus.real_speech import Recording, find_recordings, load_recording
from speechgpt2.corpus.store import (
    ASSISTANT_VOICE,
    CLONED,
    Corpus,
    CorpusError,
    CorpusItem,
    CorpusWriter,
    Record,
    item_of,
)
from speechgpt2.curriculum.limits import foreign_sentence, not_understood, unknown_request
from speechgpt2.curriculum.sentences import sentence, word_list
from speechgpt2.curriculum.skills import SkillExchange, check_skills, draw_exchange, typed_variants
from speechgpt2.curriculum.texts import characters
from speechgpt2.dsp.other_sounds import draw_sound
from speechgpt2.dsp.world_pitch import track_pitch
from speechgpt2.processes import single_threaded
from speechgpt2.tts.augment import STRETCH, augment_microphone, augment_utterance, stretch
from speechgpt2.tts.utterance import Utterance
from speechgpt2.tts.voice_sets import VoiceSet, voice_set
from speechgpt2.tts.voices import Voice, speak, training_voices, vary_voice

PART_SECONDS = 600.0  # approximate audio of a part of the codec corpus
PART_FILES = 500  # recordings in a part
DICTATED = ("fsdd", "cmn-words")  # sources of real dictations, which are single words
PART_EXCHANGES = 250  # exchanges, or single utterances, in a part
TYPED_SHARE = 0.1  # share of exchanges in text only
WORD_LISTS = 0.65  # share of the dictations that are lists of words; the others are sentences
OWN_VOICE = 0.15  # share of the dictations in one of the assistant's voices
DEFAULT_VOICE = 0.6  # share of the replies and read texts in the first of the assistant's voices
UNKNOWN = 0.06  # share of the exchanges whose question belongs to no skill
OTHER_TRACT = 0.5  # share of these speakers with another vocal tract
NOT_UNDERSTOOD = 0.06  # share of the exchanges whose question is noise, music, silence or another language
FOREIGN = 0.4  # share of those in another language
EVALUATION_SEED = 0  # seed of the dialogues' test split
CLASSIC = "classic"  # the voices that `mini` was trained on

MakeItems = Callable[[], Iterator[CorpusItem]]  # makes the items of a part


def build_codec_corpus(
    out: str | Path,
    hours: float,
    seed: int = 0,
    workers: int = 2,
    real_speech: str | Path | None = None,
    voices: str = CLASSIC,
) -> Corpus:
    """Build a corpus of speech with pitch, for the codec. A killed build resumes.

    80 % of the synthetic speech is by random training voices, 15 % by the assistant's voices, and 5 % by held-out
    voices: the test split. Half of it is in Mandarin.

    Args:
        out: The corpus's folder.
        hours: Hours of synthetic speech.
        seed: Seed of texts and voices.
        workers: Processes.
        real_speech: A folder of recordings, which are added (`corpus.real_speech`).
        voices: The set of voices (`tts.voice_sets`).

    Raises:
        UserError: There is no such set of voices, or the folder was begun with other arguments.
    """
    voice_set(voices)  # raises for a wrong name, before the work starts
    count = max(2, round(hours * 3600 / PART_SECONDS))
    held_out = max(1, round(count * 0.05))
    parts: list[MakeItems] = [
        partial(_codec_part, voices, seed, index, hours * 3600 / count, "train" if index < count - held_out else "test")
        for index in range(count)
    ]
    recipe: dict[str, Any] = {"kind": "codec", "hours": hours, "seed": seed, "real_speech": 0, "voices": voices}
    if real_speech is not None:
        recordings = find_recordings(Path(real_speech))
        recipe["real_speech"] = len(recordings)
        parts += [partial(_recorded_part, chunk) for chunk in _chunks(recordings)]
    return _build(CorpusWriter(out, recipe), parts, workers, "codec corpus")


def _codec_part(voices: str, seed: int, index: int, min_seconds: float, split: str) -> Iterator[CorpusItem]:
    """Yield utterances of at least `min_seconds` in all."""
    bank = voice_set(voices)
    rng = random.Random(f"codec/{seed}/{index}")
    seconds, number = 0.0, 0
    while seconds < min_seconds:
        lang = rng.choice(("en", "zh"))
        text = sentence(rng, lang)
        voice = _codec_voice(bank, rng, lang, split)
        utterance = speak(text, voice)
        yield item_of(utterance, f"syn-{index:04d}-{number:04d}", f0=track_pitch(utterance.pcm), split=split)
        seconds += utterance.duration
        number += 1


def _codec_voice(bank: VoiceSet, rng: random.Random, lang: str, split: str) -> Voice:
    if split == "test":
        return vary_voice(rng.choice(bank.held_out[lang]), rng)
    if rng.random() < 0.16:
        return vary_voice(_choose(bank.assistant[lang], rng), rng)
    return bank.draw(lang, rng)


def _choose(voices: tuple[Voice, ...], rng: random.Random) -> Voice:
    """Choose one at random; draws no number if there is only one."""
    return voices[0] if len(voices) == 1 else rng.choice(voices)


def _chunks(recordings: list[Recording]) -> list[list[Recording]]:
    """Return the recordings of each part."""
    return [recordings[i : i + PART_FILES] for i in range(0, len(recordings), PART_FILES)]


def _recorded_part(chunk: list[Recording]) -> Iterator[CorpusItem]:
    for recording in chunk:
        item = load_recording(recording)
        if item is not None:
            yield item


def build_dialogue_corpus(
    out: str | Path,
    exchanges: int,
    seed: int = 0,
    workers: int = 2,
    says: int | None = None,
    dictations: int = 0,
    test: int = 400,
    voices: str = CLASSIC,
    takes: int = 1,
    real_speech: str | Path | None = None,
    skills: Sequence[str] = (),
) -> Corpus:
    """Build a corpus of dialogues for the language model; half of it is in Mandarin. A killed build resumes.

    An exchange is a question (role "user") by a random training voice, with a room and noise (augment.py), and its
    reply (role "assistant") by one of the assistant's voices; ``extra["assistant_voice"]`` is that voice's number, 0
    for the default. A tenth of the exchanges has text only. Some questions belong to no skill, or cannot be
    understood. ``extra`` of a question holds exchange id, skill, answer key and typed variants. A sentence that the
    assistant reads aloud has the skill "say". No utterance is spoken twice in the same way.

    Args:
        out: The corpus's folder.
        exchanges: Number of questions with replies.
        seed: Seed of texts and voices.
        workers: Processes.
        says: Texts that the assistant reads aloud; by default half of ``exchanges``.
        dictations: Utterances to transcribe.
        test: Exchanges of the test split: `held_out_questions`, without room and noise.
        voices: The set of voices for all but the questions of the test split (`tts.voice_sets`). If it has no voices
            of the assistant, replies are text only, and nothing is read aloud.
        takes: How often a spoken question or dictation occurs, each time with another room and noise. More than once
            saves time with slow synthesis.
        real_speech: A folder of recordings. Its single words become dictations, if the curriculum has their characters.
        skills: What is asked; by default all skills in their shares.

    Raises:
        UserError: There is no such set of voices or skill, or the folder was begun with other arguments.
    """
    voice_set(voices)  # raises for a wrong name, before the work starts
    check_skills(skills)
    says = exchanges // 2 if says is None else says
    recipe: dict[str, Any] = {
        "kind": "dialogues",
        "exchanges": exchanges,
        "says": says,
        "dictations": dictations,
        "test": test,
        "seed": seed,
        "voices": voices,
        "takes": takes,
    }
    if skills:
        recipe["skills"] = list(skills)
    parts: list[MakeItems] = [partial(_test_part, voices, test, skills)]
    counts: tuple[tuple[Callable, int], ...] = (
        (partial(_exchange_part, takes, skills), exchanges),
        (_say_part, says),
        (partial(_dictation_part, takes), dictations),
    )
    for make_part, total in counts:
        for index, first in enumerate(range(0, total, PART_EXCHANGES)):
            parts.append(partial(make_part, voices, seed, index, min(PART_EXCHANGES, total - first)))
    if real_speech is not None:
        recordings = [
            recording
            for recording in find_recordings(Path(real_speech))
            if recording.source in DICTATED and characters().issuperset(recording.text)
        ]
        recipe["real_speech"] = len(recordings)
        parts += [partial(_recorded_dictations, takes, chunk) for chunk in _chunks(recordings)]
    return _build(CorpusWriter(out, recipe), parts, workers, "dialogue corpus")


def _test_part(voices: str, count: int, skills: Sequence[str]) -> Iterator[CorpusItem]:
    speaker = _Speaker(random.Random("replies of the test split"), voice_set(voices), 1)
    for number, trial in enumerate(held_out_questions(count, EVALUATION_SEED, skills)):
        question = speak(trial.exchange.question, trial.voice)
        yield from speaker.exchange(f"test-{number:04d}", trial.exchange, question, "test")


def _exchange_part(
    takes: int, skills: Sequence[str], voices: str, seed: int, index: int, count: int
) -> Iterator[CorpusItem]:
    rng, bank = random.Random(f"exchanges/{seed}/{index}"), voice_set(voices)
    speaker, asker = _Speaker(rng, bank, takes), _Asker(rng, bank)
    for number in range(count):
        lang = ("en", "zh")[number % 2]
        name, choice = f"ex-{index:04d}-{number:04d}", rng.random()
        if choice < NOT_UNDERSTOOD:
            yield from speaker.exchange(name, not_understood(rng, lang), _incomprehensible(rng))
            continue
        if choice < NOT_UNDERSTOOD + UNKNOWN:
            exchange = unknown_request(rng, lang)
        else:
            exchange = draw_exchange(rng, lang, rng.choice(skills) if skills else None)
        if rng.random() < TYPED_SHARE:
            yield from _typed(name, exchange, rng)
        else:
            question = asker.speak(exchange.question, lang)
            yield from speaker.exchange(name, exchange, question)
            yield from asker.clean(name, question)


def _say_part(voices: str, seed: int, index: int, count: int) -> Iterator[CorpusItem]:
    rng = random.Random(f"says/{seed}/{index}")
    speaker = _Speaker(rng, voice_set(voices), 1)
    for number in range(count):
        lang = ("en", "zh")[number % 2]
        text = rng.choice((sentence, word_list))(rng, lang)
        yield speaker.reply(f"say-{index:04d}-{number:04d}", text, lang, extra={"skill": "say"})


def _dictation_part(takes: int, voices: str, seed: int, index: int, count: int) -> Iterator[CorpusItem]:
    rng, bank = random.Random(f"dictations/{seed}/{index}"), voice_set(voices)
    asker = _Asker(rng, bank)
    for number in range(count):
        lang = ("en", "zh")[number % 2]
        text = word_list(rng, lang) if rng.random() < WORD_LISTS else sentence(rng, lang)
        name = f"hear-{index:04d}-{number:04d}"
        if rng.random() < OWN_VOICE and bank.assistant[lang]:
            utterance = speak(text, vary_voice(_choose(bank.assistant[lang], rng), rng))
        else:
            utterance = asker.speak(text, lang)
            yield from asker.clean(name, utterance)
        for take in range(takes):
            recorded = augment_utterance(utterance, rng)
            yield item_of(recorded, f"{name}{_suffix(take)}", role="user", extra={"skill": "dictation"})


def _recorded_dictations(takes: int, chunk: list[Recording]) -> Iterator[CorpusItem]:
    for recording in chunk:
        item = load_recording(recording, pitch=False)
        if item is None or item.pcm is None:
            continue
        random = np.random.default_rng(zlib.crc32(item.record.id.encode()))
        for take in range(takes if recording.split == "train" else 1):
            extra = {**item.record.extra, "skill": "dictation"}
            record = replace(item.record, id=f"{item.record.id}{_suffix(take)}", role="user", extra=extra)
            yield CorpusItem(record, augment_microphone(item.pcm, random) if take else item.pcm)


@dataclass(frozen=True)
class _Speaker:
    """Speaks the assistant's side of a corpus, and joins it with the user's."""

    rng: random.Random
    bank: VoiceSet
    takes: int

    def exchange(
        self, name: str, exchange: SkillExchange, question: Utterance, split: str = "train"
    ) -> Iterator[CorpusItem]:
        """Yield the question once for each take, with another room and noise, and each time the reply."""
        question_extra, reply_extra = _extras(name, exchange, self.rng)
        reply = self.reply(f"{name}-a", exchange.reply, exchange.lang, split=split, extra=reply_extra)
        for take in range(self.takes):
            take_extra = {"exchange": f"{name}{_suffix(take)}"}
            recorded = augment_utterance(question, self.rng) if split == "train" else question
            yield item_of(
                recorded, f"{name}{_suffix(take)}-q", role="user", split=split, extra={**question_extra, **take_extra}
            )
            extra = {**reply.record.extra, **take_extra}
            yield replace(reply, record=replace(reply.record, id=f"{name}{_suffix(take)}-a", extra=extra))

    def reply(self, name: str, text: str, lang: str, *, extra: dict[str, Any], **fields: Any) -> CorpusItem:
        """Speak a text in one of the assistant's voices, or write it if there is none."""
        voices = self.bank.assistant[lang]
        if not voices:
            return CorpusItem(Record(name, text, lang, role="assistant", extra=extra, **fields))
        is_default = len(voices) == 1 or self.rng.random() < DEFAULT_VOICE
        number = 0 if is_default else self.rng.randrange(1, len(voices))
        utterance = speak(text, vary_voice(voices[number], self.rng))
        return item_of(utterance, name, role="assistant", extra={**extra, ASSISTANT_VOICE: number}, **fields)


@dataclass
class _Asker:
    """Speaks the user's side of a corpus, each speaker twice, so that the model can learn to imitate speakers."""

    rng: random.Random
    bank: VoiceSet
    speakers: dict[str, tuple[Voice, float]] = field(default_factory=dict)

    def speak(self, text: str, lang: str) -> Utterance:
        """Speak by the speaker of the language's last utterance for the second time, or by a new speaker."""
        speaker = self.speakers.pop(lang, None)
        if speaker is None:
            speaker = self.speakers[lang] = self._draw_speaker(lang)
        voice, tract = speaker
        if tract == 1:
            return speak(text, voice)
        return replace(stretch(speak(text, voice), tract), voice=replace(voice, name=f"{voice.name}@{tract}"))

    def clean(self, name: str, utterance: Utterance) -> Iterator[CorpusItem]:
        """Yield the utterance without room and noise, if the model learns to imitate its speaker."""
        if utterance.voice.engine in self.bank.imitated:
            yield item_of(utterance, f"{name}-clean", extra={"skill": CLONED})

    def _draw_speaker(self, lang: str) -> tuple[Voice, float]:
        voice = self.bank.draw(lang, self.rng)
        is_other = voice.engine in self.bank.imitated and self.rng.random() < OTHER_TRACT
        return voice, round(self.rng.uniform(*STRETCH), 3) if is_other else 1.0


def _incomprehensible(rng: random.Random) -> Utterance:
    """Return a sound that is not speech, or a sentence in another language; without text."""
    if rng.random() < FOREIGN:
        text, accent = foreign_sentence(rng)
        speaker = rng.choice([voice for voice in training_voices("en") if voice.engine == "espeak"])
        utterance = speak(text, vary_voice(replace(speaker, accent=accent), rng))
        return replace(utterance, text="", words=(), phones=())
    return Utterance(draw_sound(rng).astype(np.float32), "", "en", Voice("none", "sound", "en"), (), ())


def _suffix(take: int) -> str:
    return f"-{take}" if take else ""


def _typed(name: str, exchange: SkillExchange, rng: random.Random) -> Iterator[CorpusItem]:
    """Yield the question as a user would type it, and the reply, without audio."""
    question_extra, reply_extra = _extras(name, exchange, rng)
    text = rng.choice(question_extra["typed"])
    yield CorpusItem(Record(f"{name}-q", text, exchange.lang, role="user", extra=question_extra))
    yield CorpusItem(Record(f"{name}-a", exchange.reply, exchange.lang, role="assistant", extra=reply_extra))


def _extras(name: str, exchange: SkillExchange, rng: random.Random) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return `Record.extra` of the question and of the reply."""
    common = {"exchange": name, "skill": exchange.skill}
    typed = list(typed_variants(exchange, rng))
    return {**common, "answer_key": list(exchange.answer_key), "typed": typed}, common


def _build(writer: CorpusWriter, parts: list[MakeItems], workers: int, title: str) -> Corpus:
    """Write the missing parts, ``workers`` at a time, and join all parts.

    Each part runs in its own process. The engines carry state from one utterance to the next, so only a fresh process
    gives the same part every time.
    """
    jobs = [_Job(writer.path, writer.recipe, i, part) for i, part in enumerate(parts) if not writer.has_part(i)]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TimeRemainingColumn())  # fmt: skip
    with Progress(*columns) as progress:
        task = progress.add_task(title, total=len(parts), completed=len(parts) - len(jobs))
        for _ in _finished(jobs, workers):
            progress.advance(task)
    return writer.finish(len(parts))


def _finished(jobs: list[_Job], workers: int) -> Iterator[_Job]:
    """Run the jobs, `workers` at a time, and yield each when it is done. Raises CorpusError if one fails."""
    spawn = multiprocessing.get_context("spawn")
    waiting, running = list(reversed(jobs)), dict[Any, tuple[Any, _Job]]()
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.pop()
                process = spawn.Process(target=job.run, daemon=True)
                with single_threaded():
                    process.start()
                running[process.sentinel] = process, job
            for sentinel in multiprocessing.connection.wait(list(running)):
                process, job = running.pop(sentinel)
                process.join()
                if process.exitcode:
                    raise CorpusError(f"part {job.index} failed (exit code {process.exitcode}); run the build again")
                yield job
    finally:
        for process, _ in running.values():
            process.terminate()


@dataclass(frozen=True)
class _Job:
    """A part to be written, in any process."""

    path: Path
    recipe: dict[str, Any]
    index: int
    make_items: MakeItems

    def run(self) -> None:
        CorpusWriter(self.path, self.recipe).write_part(self.index, self.make_items())
