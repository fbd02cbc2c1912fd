"""Does the model's speech say what its text says? Two judges, each with the teacher voice on the same texts beside it.

English is heard by PocketSphinx with a word-pair grammar of the skill's replies (`asr.pocketsphinx`). For Mandarin
there is no recogniser at hand that is not the project's own, so the model transcribes speech by itself; that judge is
circular (what it garbles it may understand) and is named so. It hears English too, which tells how far it can be
trusted.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechgpt2.asr.error_rate import edit_distance
from speechgpt2.asr.pocketsphinx import PocketSphinx
from speechgpt2.curriculum import skills
from speechgpt2.curriculum.numbers import tokens
from speechgpt2.errors import UserError
from speechgpt2.eval.answers import Answer
from speechgpt2.eval.peers import Ours
from speechgpt2.eval.report import column
from speechgpt2.eval.testsets import say
from speechgpt2.tts import voices

DOMAIN_DRAWS = 2000  # replies of a skill that its grammar knows, besides those that are judged

Wave = NDArray[np.float32]
Words = list[str]
Voice = Callable[[Answer], Wave]
Listener = Callable[[Answer, Wave], Words | None]  # None: cannot judge this text
Done = Callable[[], Any]


@dataclass(frozen=True)
class SpeechRow:
    """Speech against the model's own text, and how many of the answers are right *as heard*.

    Words are characters in Mandarin; `accuracy` is 1 − errors per word.
    """

    lang: str = column("language")
    judge: str = column("judge")
    voice: str = column("voice")
    n: int = column("n", "d")
    exact: float = column("exactly the text ↑", ".2f")
    accuracy: float = column("words ↑", ".3f")
    right: float = column("right as heard ↑", ".2f")


def speech_rows(model: Any, answers: Iterable[Answer], done: Done = lambda: None) -> list[SpeechRow]:
    """Judge the spoken answers to spoken questions. `done` is called after each utterance."""
    spoken = [a for a in answers if a.mode == "s2s" and _sayable(a)]
    english = [a for a in spoken if a.lang == "en"]
    mandarin = [a for a in spoken if a.lang == "zh"]
    codec = Ours("codec", model.codec)
    speakers: dict[str, Voice] = {"the model": lambda a: a.pcm, "teacher": teacher}
    through: dict[str, Voice] = {"teacher through the codec": lambda a: codec.copy(teacher(a)).pcm}
    rows = _rows("pocketsphinx", english, speakers | through, sphinx(english), done) if english else []
    try:
        for group in (mandarin, english):
            rows += _rows("the model itself (circular)", group, speakers, _itself(model), done)
    except UserError:  # a model that does not tell what it heard
        pass
    return rows


def teacher(answer: Answer) -> Wave:
    """The voice that the model learned to speak with, on the same text. Errors: ValueError for a text without sound."""
    return say(answer.text, voices.ASSISTANT_VOICES[answer.lang]).pcm


def sphinx(answers: Sequence[Answer]) -> Listener:
    """pocketsphinx with one grammar per skill of the English `answers`; None where its dictionary lacks a word."""
    recognisers: dict[str, PocketSphinx] = {}
    for skill in dict.fromkeys(a.skill for a in answers):
        rng = random.Random(f"domain/{skill}")
        domain = [tokens(skills.draw_exchange(rng, "en", skill).reply, "en") for _ in range(DOMAIN_DRAWS)]
        recognisers[skill] = PocketSphinx([*domain, *(tokens(a.text, "en") for a in answers if a.skill == skill)])

    def listen(answer: Answer, pcm: Wave) -> Words | None:
        recogniser = recognisers[answer.skill]
        return recogniser.transcribe(pcm, "en").text.split() if recogniser.knows(tokens(answer.text, "en")) else None

    return listen


def _itself(model: Any) -> Listener:
    return lambda answer, pcm: tokens(model.transcribe(pcm), answer.lang)


def _rows(
    judge: str, answers: Sequence[Answer], speakers: dict[str, Voice], listen: Listener, done: Done
) -> list[SpeechRow]:
    """One row per speaker, over the texts that the judge can judge; silence is heard as no words."""
    rows = []
    for name, voice in speakers.items():
        heard = []
        for answer in answers:
            pcm = voice(answer)
            words = listen(answer, pcm) if len(pcm) else []
            heard += [] if words is None else [(answer, words)]
            done()
        rows += [_row(judge, name, heard)] if heard else []
    return rows


def _row(judge: str, voice: str, heard: Sequence[tuple[Answer, Words]]) -> SpeechRow:
    lang = heard[0][0].lang
    pairs = [(tokens(answer.text, lang), words) for answer, words in heard]
    wrong, total = sum(edit_distance(text, words) for text, words in pairs), sum(len(text) for text, _ in pairs)
    joint = "" if lang == "zh" else " "
    return SpeechRow(
        lang,
        judge,
        voice,
        n=len(heard),
        exact=float(np.mean([text == words for text, words in pairs])),
        accuracy=1 - wrong / total,
        right=float(np.mean([skills.is_correct(a.trial.exchange, joint.join(words)) for a, words in heard])),
    )


def _sayable(answer: Answer) -> bool:
    """Whether the text has words, and the teacher voice makes a sound of them."""
    try:
        return bool(tokens(answer.text, answer.lang)) and bool(len(teacher(answer)))
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        return False
