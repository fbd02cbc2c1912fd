"""Training examples of many turns, drawn from a corpus of conversation turns (conversation_turns.py).

The model takes the side of the assistant, or either side in conversations among people. The other side is its input,
its own side is learnt. If its side speaks first, that turn is a greeting: it sets the voice and is not learnt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from speechgpt2.corpus.lm_dataset import CodedSource
from speechgpt2.corpus.store import Corpus, Record
from speechgpt2.errors import UserError
from speechgpt2.lm.example import TrainingExample, TurnPair, training_example
from speechgpt2.lm.prompt import Prompt
from speechgpt2.types import MODES, Mode


@dataclass(frozen=True)
class Sides:
    """Probability of each mode: input and output, speech or text."""

    s2s: float = 0.5
    s2t: float = 0.2
    t2s: float = 0.1
    t2t: float = 0.2


class ConversationSource(CodedSource):
    """Draws conversations as examples (see `lm.train`). Raises `UserError`, also if no turn could be learnt."""

    def __init__(self, corpus: Corpus, codes: str | Path, prompt: Prompt, sides: Sides = Sides()):
        super().__init__(corpus, codes, prompt)
        self.sides = sides
        by_talk = groupby(corpus.records, lambda record: record.extra["conversation"])
        talks = [list(records) for _, records in by_talk]
        self.talks = [talk for talk in talks if any(len(_pairs(talk, own)) for own in _sides(talk))]
        if not self.talks:
            raise UserError(f"{corpus.path}: these conversations have no replies to learn")

    def example(self, random: np.random.Generator) -> TrainingExample:
        """Draw a conversation from one side, in a random mode."""
        talk = self.talks[int(random.integers(len(self.talks)))]
        own = [side for side in _sides(talk) if _pairs(talk, side)]
        weights = np.array([getattr(self.sides, mode) for mode in MODES])
        mode = MODES[int(random.choice(len(MODES), p=weights / weights.sum()))]
        return self.example_of(talk, own[int(random.integers(len(own)))], mode, random)

    def example_of(self, talk: Sequence[Record], own: int, mode: Mode, random: np.random.Generator) -> TrainingExample:
        """Make an example of a conversation, from the side of the speaker on channel `own`."""
        begins = talk[0].extra["channel"] == own and mode[2] == "s"
        greeting = self._spoken(talk[0]) if begins else None
        pairs = _pairs(talk, own)
        exchanges = [self._exchange(question, reply, mode, random) for question, reply in pairs]
        example = training_example(self.prompt, mode, exchanges, greeting)
        return self._mask_cut_replies(example, [reply.extra["cut"] for _, reply in pairs])

    def _exchange(self, question: Record, reply: Record, mode: Mode, random: np.random.Generator) -> TurnPair:
        spoken = self._spoken(reply) if mode[2] == "s" else None
        if mode[0] == "t":
            return TurnPair(question.text, reply.text, spoken)
        speech = self._labelled_speech(question, random)
        return TurnPair(speech.codes, reply.text, spoken, question.text, speech.words, speech.phones)

    def _mask_cut_replies(self, example: TrainingExample, cut: Sequence[bool]) -> TrainingExample:
        """Exclude from the loss what follows the last word of a reply that was cut short."""
        ids, text = self.prompt.special_ids, example.patches.text[0]
        speaking = example.patches.codes[0, :, 0, 0] != self.prompt.config.no_speech
        ends = (text == ids.eos).nonzero()[-len(cut) :, 0].tolist()
        text_loss_mask, code_loss_mask = example.text_loss_mask.clone(), example.code_loss_mask.clone()
        for end in (end for end, was_cut in zip(ends, cut) if was_cut):
            closing = end - len(self.prompt.encode(self.prompt.template.turn_end))
            begun = [at for at in range(closing) if text[at] == ids.speech_start and example.text_loss_mask[0, at]]
            spoken = [at for at in range(begun[-1] + 1, closing) if speaking[at]] if begun else []
            if spoken:
                text_loss_mask[0, begun[-1]] = code_loss_mask[0, spoken[-1]] = False
                named = [at for at in spoken if text[at] not in (ids.filler, ids.last_filler)]
                closing = max(named, default=begun[-1]) + 1
            text_loss_mask[0, closing : end + 1] = False
        return example._replace(text_loss_mask=text_loss_mask, code_loss_mask=code_loss_mask)


def _sides(talk: Sequence[Record]) -> list[int]:
    """Return the channels that the model may take: the assistant's, else both."""
    assistants = {record.extra["channel"] for record in talk if record.role == "assistant"}
    return sorted(assistants) or [0, 1]


def _pairs(talk: Sequence[Record], own: int) -> list[tuple[Record, Record]]:
    """Return pairs of a turn to the speaker on channel `own`, and the reply."""
    return [(a, b) for a, b in zip(talk, talk[1:]) if a.extra["channel"] != own and b.extra["channel"] == own]
