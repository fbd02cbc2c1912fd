"""The held-out question set: questions of the curriculum, by voices that are in no training data."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from speechgpt2.curriculum.skills import SKILLS, SkillExchange, draw_exchange
from speechgpt2.tts.utterance import Voice
from speechgpt2.tts.voices import HELD_OUT_VOICES, vary_voice


@dataclass(frozen=True)
class HeldOutQuestion:
    """An exchange of the evaluation set, and the held-out voice that asks its question."""

    exchange: SkillExchange
    voice: Voice


def held_out_questions(n: int = 200, seed: int = 0, skills: Sequence[str] = ()) -> tuple[HeldOutQuestion, ...]:
    """Draw the evaluation set: the same questions for the same arguments.

    Args:
        n: number of questions; languages alternate, skills follow in turn.
        seed: seed of the generator.
        skills: keys of `SKILLS`; by default those that are drawn without their name.
    """
    names = list(skills) or [name for name, skill in SKILLS.items() if skill.share]
    rng = random.Random(f"evaluation/{seed}")
    questions = []
    for index in range(n):
        lang = ("en", "zh")[index % 2]
        exchange = draw_exchange(rng, lang, names[index // 2 % len(names)])
        questions.append(HeldOutQuestion(exchange, vary_voice(rng.choice(HELD_OUT_VOICES[lang]), rng)))
    return tuple(questions)
