"""Training examples of the language model, drawn from encoded data by a mix of tasks (lm/tasks.py).

Single utterances become examples of transcription, synthesis and the like. Turns of a conversation
(`extra["conversation"]`), or a question and a reply with the same `extra["exchange"]`, become dialogues. The model
takes the channel of the assistant, or either channel of a conversation between people; the other channel is its input.
If its channel speaks first, that turn is a greeting: it sets the voice and is not learnt. If the assistant has several
voices (`extra["assistant_voice"]`, a number), replies by all but the first need such a greeting: another text by the
same voice.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from speechgpt2.corpus.codes import CodedData
from speechgpt2.corpus.phones import SILENCE, UNKNOWN, PhoneSet
from speechgpt2.corpus.store import ASSISTANT_VOICE, CLONED, Record
from speechgpt2.errors import UserError
from speechgpt2.lm import tasks
from speechgpt2.lm.alignment import restore_spacing
from speechgpt2.lm.example import TrainingExample, TurnPair, training_example
from speechgpt2.lm.prompt import Prompt
from speechgpt2.lm.segments import AlignedSpeech
from speechgpt2.lm.tasks import LabelledSpeech, TaskMix
from speechgpt2.lm.tools import render_tool_turn
from speechgpt2.lm.validation import HeldOutTask
from speechgpt2.training import distributed
from speechgpt2.types import FRAME_RATE, MODES, SAMPLE_RATE, Mode, Segment, Text, Tool, ToolCall, Turn

DEFAULT_VOICE = 0
LEADING_SILENCE = 9  # less frames of silence than this are before the input speech
FINAL_SILENCE = 13  # less frames of silence than this are after an incomplete question
SPAN_WORDS = (2, 7)  # words of an interleaved span: at least 2, fewer than 7
SHORTEST_CONTINUED = 1.5  # seconds of a recording that is continued
LONGEST_GREETING = 2.5  # seconds of a text that serves as a greeting
HELD_OUT = 64  # examples of a validation
GREETING_SHARE = 0.3  # share of the dialogues in the default voice that begin with a greeting


class DialogueTurns(NamedTuple):
    """Turns in order, and the channel that the model takes (`model_channel`)."""

    turns: tuple[Record, ...]
    model_channel: int

    def pairs(self) -> list[tuple[Record, Record]]:
        """Return each turn of the other channel with the model's reply."""
        model, neighbours = self.model_channel, zip(self.turns, self.turns[1:])
        return [(a, b) for a, b in neighbours if channel(a) != model and channel(b) == model]

    @property
    def calls_tools(self) -> bool:
        """Whether a turn calls a tool or holds a result."""
        return any(r.role == "tool" or "tool_calls" in r.extra for r in self.turns)

    def allows(self, mode: Mode) -> bool:
        """Return whether the turns have the audio that a mode needs."""
        return all((a.length or mode[0] == "t") and (b.length or mode[2] == "t") for a, b in self.pairs())


class Pool(NamedTuple):
    """The records or dialogues of a task, with cumulated probabilities."""

    items: Sequence
    cumulative: np.ndarray

    def draw(self, random: np.random.Generator):
        """Draw an item."""
        return self.items[int(np.searchsorted(self.cumulative, random.random(), side="right"))]


class TaskSource:
    """Draws examples (see `lm.train`).

    Args:
        data: Records with codes.
        prompt: The layout of the model's context.
        mix: Weights of the tasks.
        split: "train" or "test".
        phones: The phone labels of a run that is resumed, perhaps with more data; None for a new run.

    Raises:
        UserError: The prompt cannot express a task of the mix, or there is no data for any of them.
    """

    def __init__(
        self,
        data: CodedData,
        prompt: Prompt,
        mix: TaskMix,
        split: str = "train",
        phones: Sequence[str] | None = None,
    ):
        tasks.check_tasks(prompt, mix)
        self.data, self.prompt, self.mix = data, prompt, mix
        self.phone_set = PhoneSet((r.phones for r in data.records if r.split == "train"), phones)
        self.phones = self.phone_set.names
        self.pools = self._pools(split)
        weights = {task: weight for task, weight in mix.weights().items() if task in self.pools}
        absent = [task for task in mix.weights() if task not in weights]
        if not weights:
            raise UserError(f"the data has nothing for the tasks of the mix ({', '.join(absent)})")
        if absent and distributed.rank() == 0:
            what, then = ("data", "share their part") if split == "train" else ("held-out data", "alone are validated")
            print(f"no {what} for {', '.join(absent)}: the other tasks {then}", file=sys.stderr)
        self.tasks = list(weights)
        self.shares = np.array(list(weights.values())) / sum(weights.values())

    def example(self, random: np.random.Generator) -> TrainingExample:
        """Draw an example of a random task."""
        return self.example_of(self.tasks[int(random.choice(len(self.tasks), p=self.shares))], random)

    def example_of(self, task: str, random: np.random.Generator) -> TrainingExample:
        """Draw an example of one task."""
        item = self.pools[task].draw(random)
        if task in MODES:
            return self._exchanges(item, task, random)  # type: ignore[arg-type]
        return getattr(self, f"_{task}")(item, random)

    def held_out(self, count: int = 0) -> list[HeldOutTask]:
        """Draw some `count` examples (0: 64) that are not trained on, at least two of each task, always the same."""
        count = count or HELD_OUT
        try:
            source = TaskSource(self.data, self.prompt, self.mix, "test", self.phones)
        except UserError:
            return []
        return [
            HeldOutTask(task, float(share), source.first_examples(task, max(2, round(count * share))))
            for task, share in zip(source.tasks, source.shares)
        ]

    def first_examples(self, task: str, count: int) -> list[TrainingExample]:
        """Draw examples of a task, the same ones at each call."""
        return [self.example_of(task, np.random.default_rng((0, number))) for number in range(count)]

    def held_out_texts(self) -> list[str]:
        """Return plain texts that are not trained on."""
        return [r.text for r in self.data.records if r.role == "text" and r.split == "test"]

    # Pools

    def _pools(self, split: str) -> dict[str, Pool]:
        weight = {record.id: w for record, w in zip(self.data.records, self.data.weights)}
        records = [r for r in self.data.records if r.split == split]
        alone = [r for r in records if r.length and not belongs_to_dialogue(r)]
        pools: dict[str, list] = {
            "text": [r for r in records if r.role == "text"],
            "transcription": [r for r in alone if r.text and r.role != "assistant"],
            "synthesis": [r for r in alone if r.text and r.role != "user"],
            "continuation": [r for r in alone if r.role != "user" and r.length > SHORTEST_CONTINUED * SAMPLE_RATE],
            "interleaving": [r for r in alone if r.role != "user" and len(r.words) >= 2 * SPAN_WORDS[0]],
        }
        self.by_speaker = defaultdict(list)
        for record in pools["synthesis"]:
            self.by_speaker[record.speaker].append(record)
        pools["synthesis"] = [r for r in pools["synthesis"] if r.extra.get("skill") != CLONED]
        pools["cloned_synthesis"] = [
            record
            for speaker, utterances in self.by_speaker.items()
            if speaker and len(utterances) > 1
            for record in utterances
        ]
        dialogues = list(find_dialogues(records))
        pools["tools"] = [d for d in dialogues if d.calls_tools]
        without_tools = [d for d in dialogues if not d.calls_tools]
        for mode in MODES:
            pools[mode] = [d for d in without_tools if d.allows(mode)]
        pools["unfinished"] = [d for d in pools["s2t"] if len(d.turns[0].words) >= 3 and is_exchange(d)]
        self.exchanges = defaultdict(list)  # by `_exchange_key`: exchanges that may follow one another
        for mode in MODES:
            for dialogue in filter(is_exchange, pools[mode]):
                self.exchanges[_exchange_key(dialogue, mode)].append(dialogue)
        self.greetings = defaultdict(list)  # by voice
        for record in pools["synthesis"]:
            if ASSISTANT_VOICE in record.extra and record.length <= LONGEST_GREETING * SAMPLE_RATE:
                self.greetings[record.extra[ASSISTANT_VOICE]].append(record)
        return {task: _pool(items, weight) for task, items in pools.items() if items}

    # Tasks

    def _exchanges(self, dialogue: DialogueTurns, mode: Mode, random: np.random.Generator) -> TrainingExample:
        if not is_exchange(dialogue):
            return self.dialogue_example(dialogue, mode, random)
        pairs = dialogue.pairs()
        others = self.exchanges[_exchange_key(dialogue, mode)]
        while random.random() < self.mix.next_turn:
            pairs += others[int(random.integers(len(others)))].pairs()
        greeting = self._greeting(dialogue.turns[-1], random) if mode[2] == "s" else None
        return training_example(self.prompt, mode, [self._pair(a, b, mode, random) for a, b in pairs], greeting)

    def _greeting(self, reply: Record, random: np.random.Generator) -> AlignedSpeech | None:
        """Return another text by the voice of a reply; None if the default voice answers without a greeting."""
        voice = reply.extra.get(ASSISTANT_VOICE, DEFAULT_VOICE)
        if voice == DEFAULT_VOICE and random.random() >= GREETING_SHARE:
            return None
        greetings = [record for record in self.greetings[voice] if record.id != reply.id]
        return self._spoken(greetings[int(random.integers(len(greetings)))]) if greetings else None

    def dialogue_example(self, dialogue: DialogueTurns, mode: Mode, random: np.random.Generator) -> TrainingExample:
        """Make an example of a whole conversation."""
        first, pairs = dialogue.turns[0], dialogue.pairs()
        begins = channel(first) == dialogue.model_channel and mode[2] == "s" and first.length
        example = training_example(
            self.prompt,
            mode,
            [self._pair(a, b, mode, random) for a, b in pairs],
            self._spoken(first) if begins else None,
            first.extra.get("system") or None,
            [Tool(t["name"], t["description"], t["parameters"]) for t in first.extra.get("tools", ())],
        )
        return _mask_cut_replies(self.prompt, example, [bool(b.extra.get("cut")) for _, b in pairs])

    def _tools(self, dialogue: DialogueTurns, random: np.random.Generator) -> TrainingExample:
        """Make an example with tool calls, which are text; questions are speech if all of them are recorded."""
        questions = [a for a, _ in dialogue.pairs() if a.role != "tool"]
        return self.dialogue_example(dialogue, "s2t" if all(a.length for a in questions) else "t2t", random)

    def _unfinished(self, dialogue: DialogueTurns, random: np.random.Generator) -> TrainingExample:
        question = dialogue.turns[0]
        words = int(random.integers(1, len(question.words)))
        speech, pause = self._labelled_speech(question, random), int(random.integers(FINAL_SILENCE))
        mode: Mode = "s2s" if random.random() < 0.5 else "s2t"
        return tasks.unfinished(self.prompt, speech, question.text, words, pause, question.lang, mode)

    def _transcription(self, record: Record, random: np.random.Generator) -> TrainingExample:
        return tasks.transcription(self.prompt, self._labelled_speech(record, random), record.text)

    def _synthesis(self, record: Record, random: np.random.Generator) -> TrainingExample:
        return tasks.synthesis(self.prompt, record.text, self._spoken(record), self._greeting(record, random))

    def _cloned_synthesis(self, record: Record, random: np.random.Generator) -> TrainingExample:
        others = [other for other in self.by_speaker[record.speaker] if other.id != record.id]
        voice = others[int(random.integers(len(others)))]
        return tasks.synthesis(self.prompt, record.text, self._spoken(record), self._spoken(voice))

    def _continuation(self, record: Record, random: np.random.Generator) -> TrainingExample:
        speech = self._spoken(record)
        prompt_patches = 1 + int(random.integers(len(speech.tokens) // 2))
        return tasks.continuation(self.prompt, speech, prompt_patches, bool(record.text and record.words))

    def _interleaving(self, record: Record, random: np.random.Generator) -> TrainingExample:
        texts, codes = restore_spacing(record.words, record.text), self.data.codes(record)
        spans: list[str | AlignedSpeech] = []
        first, speaking = 0, bool(random.integers(2))
        while first < len(texts):
            end_word = min(first + int(random.integers(*SPAN_WORDS)), len(texts))
            span = "".join(texts[first:end_word])
            start = record.words[first].start
            end = record.words[end_word].start if end_word < len(texts) else record.length / SAMPLE_RATE
            span_codes = codes[int(start * FRAME_RATE) : int(end * FRAME_RATE)]
            if speaking and len(span_codes):
                words = [(w.text, w.start - start, w.end - start) for w in record.words[first:end_word]]
                spans.append(self.prompt.align_speech(span_codes, words, span))
            else:
                spans.append(span)
            first, speaking = end_word, not speaking
        return tasks.interleaving(self.prompt, spans)

    def _text(self, record: Record, random: np.random.Generator) -> TrainingExample:
        return tasks.plain_text(self.prompt, record.text)

    # Speech

    def _pair(self, question: Record, reply: Record, mode: Mode, random: np.random.Generator) -> TurnPair:
        spoken = self._spoken(reply) if mode[2] == "s" else None
        written = _written(reply)
        if mode[0] == "t" or question.role == "tool":
            variants = [_written(question), *question.extra.get("typed", ())]
            return TurnPair(variants[int(random.integers(len(variants)))], written, spoken)
        speech = self._labelled_speech(question, random)
        return TurnPair(speech.codes, written, spoken, question.text, speech.words, speech.phones)

    def _labelled_speech(self, record: Record, random: np.random.Generator) -> LabelledSpeech:
        """Return the record's speech after a random number of silent frames, so that patch borders are anywhere.

        Only a model with chain of modality learns the words and phones while the user speaks.
        """
        silent = int(random.integers(LEADING_SILENCE))
        codes = torch.cat([self.prompt.silence.expand(silent, -1), self.data.codes(record)])
        seconds = silent / FRAME_RATE
        labels = torch.from_numpy(self.phone_set.labels(record.phones, len(codes) - silent))
        phones = torch.cat([labels.new_full((silent,), SILENCE), labels])
        learns_words = self.prompt.template.chain_of_modality
        words = [(w.text, w.start + seconds, w.end + seconds) for w in record.words] if learns_words else []
        return LabelledSpeech(codes, words, phones)

    def _spoken(self, record: Record) -> AlignedSpeech:
        words = [(w.text, w.start, w.end) for w in record.words]
        codes = self.data.codes(record)
        phones = torch.from_numpy(self.phone_set.labels(record.phones, len(codes)))
        return self.prompt.align_speech(codes, words, record.text, phones)


def belongs_to_dialogue(record: Record) -> bool:
    """Return whether a record is a turn of a dialogue."""
    return "conversation" in record.extra or "exchange" in record.extra


def is_exchange(dialogue: DialogueTurns) -> bool:
    """Return whether a dialogue is a question and its reply. Exchanges may follow one another."""
    return "exchange" in dialogue.turns[0].extra


def _exchange_key(dialogue: DialogueTurns, mode: Mode) -> tuple:
    """Return the common properties of exchanges that may follow one another: mode, language, and reply's voice."""
    voice = dialogue.turns[-1].extra.get(ASSISTANT_VOICE) if mode[2] == "s" else None
    return mode, dialogue.turns[0].lang, voice


def channel(record: Record) -> int:
    """Return the channel of a turn: 1 for the assistant, 0 for the user, unless the record states it."""
    return record.extra.get("channel", int(record.role == "assistant"))


def find_dialogues(records: Sequence[Record]) -> Iterator[DialogueTurns]:
    """Yield the dialogues among `records`, once for each channel that the model may take."""
    dialogues: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if belongs_to_dialogue(record):
            dialogues[record.extra.get("conversation") or record.extra["exchange"]].append(record)
    for turns in dialogues.values():
        assistants = {channel(record) for record in turns if record.role == "assistant"}
        for model_channel in sorted(assistants) or [0, 1]:
            dialogue = DialogueTurns(tuple(turns), model_channel)
            if dialogue.pairs():
                yield dialogue


def _mask_cut_replies(prompt: Prompt, example: TrainingExample, cut: Sequence[bool]) -> TrainingExample:
    """Exclude from the loss everything after the last word of an interrupted reply.

    Args:
        prompt: The layout of the example.
        example: The example.
        cut: Whether each of its last replies was interrupted.
    """
    ids, text = prompt.special_ids, example.patches.text[0]
    speaking = example.patches.codes[0, :, 0, 0] != prompt.config.no_speech
    ends = (text == ids.eos).nonzero()[-len(cut) :, 0].tolist()
    text_loss_mask, code_loss_mask = example.text_loss_mask.clone(), example.code_loss_mask.clone()
    phones = example.phones.clone()
    for end in (end for end, was_cut in zip(ends, cut) if was_cut):
        masked_from = end - len(prompt.encode(prompt.template.turn_end))
        starts = [at for at in range(masked_from) if text[at] == ids.speech_start and example.text_loss_mask[0, at]]
        spoken = [at for at in range(starts[-1] + 1, masked_from) if speaking[at]] if starts else []
        if spoken:
            text_loss_mask[0, starts[-1]] = code_loss_mask[0, spoken[-1]] = False
            phones[0, spoken[-1]] = UNKNOWN
            words = [at for at in spoken if text[at] not in (ids.filler, ids.last_filler)]
            masked_from = max(words, default=starts[-1]) + 1
        text_loss_mask[0, masked_from : end + 1] = False
    return example._replace(text_loss_mask=text_loss_mask, code_loss_mask=code_loss_mask, phones=phones)


def _pool(items: list, weight: dict[str, float]) -> Pool:
    first_records = [item.turns[0] if isinstance(item, DialogueTurns) else item for item in items]
    weights = np.array([weight[record.id] for record in first_records])
    return Pool(items, np.cumsum(weights) / weights.sum())


def _written(record: Record) -> str:
    """Return the text of a turn, with its tool calls or as a tool's result."""
    if record.role == "tool":
        return render_tool_turn(Turn("tool", (Text(record.text),))) or ""
    calls = [ToolCall(c["name"], c["arguments"]) for c in record.extra.get("tool_calls", ())]
    if not calls:
        return record.text
    segments: list[Segment] = [Text(record.text)] if record.text else []
    return render_tool_turn(Turn("assistant", (*segments, *calls))) or ""
