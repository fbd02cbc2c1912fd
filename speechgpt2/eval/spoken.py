"""Does the model's speech say what its text says? Two judges, each with the teacher voice on the same texts beside it.

English is heard by pocketsphinx with a word-pair grammar of the skill's replies (`eval.recognise`). For Mandarin there is no
recogniser at hand that is not the project's own, so the model transcribes speech by itself; that judge is circular (what it
garbles it may understand) and is named so. It hears English too, which tells how far it can be trusted.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from speechgpt2.data import dialogues, voices
from speechgpt2.data.numbers import tokens
from speechgpt2.eval.dialogue import Answer
from speechgpt2.eval.peers import Ours
from speechgpt2.eval.recognise import Recogniser, errors
from speechgpt2.eval.report import column
from speechgpt2.types import Turn

DOMAIN_DRAWS = 2000  # replies of a skill that its grammar knows, besides those that are judged

Wave = NDArray[np.float32]
Voice = Callable[[Answer], Wave]
Listener = Callable[[Answer, Wave], "list[str] | None"]


@dataclass(frozen=True)
class SpeechRow:
    """Speech against the model's own text: share of utterances heard exactly so, word accuracy (characters in Mandarin),
    and how many of the answers are right *as heard*."""

    lang: str = column("language")
    judge: str = column("judge")
    voice: str = column("voice")
    n: int = column("n", "d")
    exact: float = column("exactly the text ↑", ".2f")
    accuracy: float = column("words ↑", ".3f")
    right: float = column("right as heard ↑", ".2f")


def speech_rows(model: Any, answers: Sequence[Answer], done: Callable[[], Any] = lambda: None) -> list[SpeechRow]:
    """Judge the spoken answers to spoken questions. `done` is called after each utterance."""
    spoken = [a for a in answers if a.mode == "s2s" and _sayable(a)]
    codec = Ours("codec", model.codec)
    speakers: dict[str, Voice] = {
        "the model": lambda a: a.pcm,
        "teacher": teacher,
        "teacher through the codec": lambda a: codec.copy(teacher(a)).pcm[codec.delay :],
    }
    english = [a for a in spoken if a.trial.exchange.lang == "en"]
    rows = []
    listener = sphinx(english) if english else None
    for name, voice in speakers.items() if listener else ():
        rows.append(_row("en", "pocketsphinx", name, _heard(english, voice, listener, done)))
    for lang in ("zh", "en"):
        mine = [a for a in spoken if a.trial.exchange.lang == lang]
        for name in ("the model", "teacher") if mine else ():
            heard = _heard(mine, speakers[name], lambda _, pcm, lang=lang: transcribed(model, pcm, lang), done)
            rows.append(_row(lang, "the model itself (circular)", name, heard))
    return rows


def teacher(answer: Answer) -> Wave:
    """The voice that the model learned to speak with, on the same text."""
    return voices.speak(answer.text, voices.ASSISTANT_VOICES[answer.trial.exchange.lang]).pcm


def sphinx(answers: Sequence[Answer]) -> Listener:
    """pocketsphinx with one grammar per skill; hears None where its dictionary lacks a word of the text."""
    recognisers: dict[str, Recogniser] = {}
    for skill in dict.fromkeys(a.trial.exchange.skill for a in answers):
        rng = random.Random(f"domain/{skill}")
        domain = [tokens(dialogues.draw(rng, "en", skill).reply, "en") for _ in range(DOMAIN_DRAWS)]
        judged = [tokens(a.text, "en") for a in answers if a.trial.exchange.skill == skill]
        recognisers[skill] = Recogniser([*domain, *judged])

    def listen(answer: Answer, pcm: Wave) -> list[str] | None:
        recogniser = recognisers[answer.trial.exchange.skill]
        return recogniser.hear(pcm) if recogniser.knows(tokens(answer.text, "en")) else None

    return listen


@torch.inference_mode()
def transcribed(model: Any, pcm: Wave, lang: str) -> list[str]:
    """What the model itself hears in `pcm [N]`: the transcript that precedes its answer."""
    if not len(pcm):
        return []
    return tokens(model.chat([Turn.user(speech=pcm)], mode="s2t").transcript or "", lang)


def _heard(
    answers: Iterable[Answer], voice: Voice, listen: Listener, done: Callable[[], Any]
) -> list[tuple[Answer, list[str]]]:
    result = []
    for answer in answers:
        pcm = voice(answer)
        words = listen(answer, pcm) if len(pcm) else []
        if words is not None:
            result.append((answer, words))
        done()
    return result


def _row(lang: str, judge: str, voice: str, heard: Sequence[tuple[Answer, list[str]]]) -> SpeechRow:
    wanted = [tokens(answer.text, lang) for answer, _ in heard]
    wrong = sum(errors(text, words) for text, (_, words) in zip(wanted, heard, strict=True))
    joint = "" if lang == "zh" else " "
    right = [dialogues.right(answer.trial.exchange, joint.join(words)) for answer, words in heard]
    return SpeechRow(
        lang,
        judge,
        voice,
        n=len(heard),
        exact=_mean([text == words for text, (_, words) in zip(wanted, heard, strict=True)]),
        accuracy=1 - wrong / max(1, sum(map(len, wanted))) if heard else float("nan"),
        right=_mean(right),
    )


def _mean(flags: Sequence[bool]) -> float:
    return float(np.mean(flags)) if flags else float("nan")


def _sayable(answer: Answer) -> bool:
    """Whether the text has words, and the teacher voice makes a sound of them."""
    try:
        return bool(tokens(answer.text, answer.trial.exchange.lang)) and bool(len(teacher(answer)))
    except ValueError:
        return False
