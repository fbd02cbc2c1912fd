"""The tasks that a language model learns, as examples in the layout of its prompt.

    transcription      speech → its text
    synthesis          text → speech that reads it
    cloned_synthesis   the same, in the voice of another clip
    continuation       the rest of a recording
    interleaving       one utterance, whose spans are written and spoken by turns
    unfinished         a question that breaks off
    s2s s2t t2s t2t    dialogues
    tools              dialogues that call tools
    text               plain text

A prompt layout that cannot express a task refuses it. With chain of modality, for example, a reply begins with the
transcript of the question, so a transcription is a reply that ends there. In the released layout a transcription is a
reply in text, which the system line requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from speechgpt2.errors import UserError
from speechgpt2.lm.alignment import TimedWord, restore_spacing
from speechgpt2.lm.example import TrainingExample, TurnPair, training_example
from speechgpt2.lm.prompt import TRANSCRIBE, Prompt
from speechgpt2.lm.segments import AlignedSpeech, concat
from speechgpt2.types import FRAME_RATE, UNFINISHED, Mode, Patches

# What the system line of the released layout asks for, besides the four modes.
READ_ALOUD = "You are an helpful assistant. You should read the user's text aloud.\n\n\n"
CONTINUE = "You are an helpful assistant. You should continue the speech.\n\n\n"
INTERLEAVE = "You are an helpful assistant. You should write and speak by turns.\n\n\n"
GO_ON = {"en": "Yes, go on.", "zh": "请继续说。"}


@dataclass(frozen=True)
class TaskMix:
    """Relative probability of each task. `next_turn`: the probability that another exchange follows one.

    The default is that of `mini`.
    """

    s2s: float = 0.30
    s2t: float = 0.28
    t2s: float = 0.04
    t2t: float = 0.14
    tools: float = 0.0
    synthesis: float = 0.12
    cloned_synthesis: float = 0.0
    transcription: float = 0.32
    continuation: float = 0.0
    interleaving: float = 0.0
    unfinished: float = 0.1
    text: float = 0.0
    next_turn: float = 0.2

    def __post_init__(self) -> None:
        wrong = next((f.name for f in fields(self) if getattr(self, f.name) < 0), None)
        if wrong or not 0 <= self.next_turn < 1:
            raise UserError(f"{wrong or 'next_turn'} must be a probability, not {getattr(self, wrong or 'next_turn')}")
        if not self.weights():
            raise UserError("the mix of tasks is empty; give one a probability")

    def weights(self) -> dict[str, float]:
        """Return the tasks with a probability above 0."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "next_turn"}
        return {name: value for name, value in values.items() if value}


class LabelledSpeech(NamedTuple):
    """Speech of the user: `codes [T, K]`, its words with times, and the phone of every frame, `[T]`."""

    codes: Tensor
    words: list[TimedWord]
    phones: Tensor


def check_tasks(prompt: Prompt, mix: TaskMix) -> None:
    """Check that the prompt's layout can express every task of the mix.

    Raises:
        UserError: The message names the task and the reason.
    """
    for task in mix.weights():
        reason = _obstacle(task, prompt)
        if reason:
            raise UserError(f"this model cannot learn '{task}': {reason}; set `{task}: 0` in the mix")


def _obstacle(task: str, prompt: Prompt) -> str:
    chain = prompt.template.chain_of_modality
    if task in ("continuation", "interleaving") and chain:
        return "with chain of modality it writes a whole reply before it speaks"
    if task == "unfinished" and not chain:
        return "it writes no transcript of the question, which would say that the question breaks off"
    if task == "tools" and not prompt.template.tools:
        return "its prompt offers no tools"
    return ""


def transcription(prompt: Prompt, speech: LabelledSpeech, text: str) -> TrainingExample:
    """Build an example of speech and its text, without an answer."""
    if not prompt.template.chain_of_modality:
        return training_example(prompt, "s2t", [TurnPair(speech.codes, text)], system=TRANSCRIBE)
    turn = TurnPair(speech.codes, "", None, text, speech.words, speech.phones)
    example = training_example(prompt, "s2t", [turn])
    is_after = (example.patches.text == prompt.special_ids.transcript_end).cumsum(1)
    return example._replace(text_loss_mask=example.text_loss_mask & (is_after.cumsum(1) <= 1))


def synthesis(prompt: Prompt, text: str, speech: AlignedSpeech, voice: AlignedSpeech | None = None) -> TrainingExample:
    """Build an example of text and the speech that reads it. A greeting in the same `voice` comes first, if given."""
    if not prompt.template.chain_of_modality:
        return training_example(prompt, "t2s", [TurnPair(text, text, speech)], voice, READ_ALOUD)
    example = training_example(prompt, "t2s", [TurnPair(None, text, speech)], voice)
    starts = (example.patches.text == prompt.special_ids.speech_start).cumsum(1)
    is_speech = starts > (voice is not None)  # the text is given, only its speech is learnt
    first = is_speech & (example.patches.text == prompt.special_ids.speech_start)
    return example._replace(text_loss_mask=example.text_loss_mask & is_speech & ~first)


def continuation(prompt: Prompt, speech: AlignedSpeech, prompt_patches: int, is_transcribed: bool) -> TrainingExample:
    """Build an example that continues a recording after `prompt_patches`. Without a transcript, only codes count."""
    patches = concat(
        prompt.system_prompt("t2s", system=CONTINUE), prompt.reply_start(), prompt.reply("", speech)
    )  # fmt: skip
    begin = int((patches.text[0] == prompt.special_ids.speech_start).nonzero()[0]) + 1 + prompt_patches
    learnt = torch.arange(patches.text.shape[1])[None] >= begin
    speaking = patches.codes[:, :, 0, 0] != prompt.config.no_speech
    return _example(patches, learnt & (~speaking | is_transcribed), learnt & speaking)


def interleaving(prompt: Prompt, spans: Sequence[str | AlignedSpeech]) -> TrainingExample:
    """Build an example of the spans of one utterance, each written or spoken."""
    start = concat(prompt.system_prompt("t2s", system=INTERLEAVE), prompt.reply_start())
    parts = [
        prompt.text_patches(prompt.encode(span)) if isinstance(span, str) else prompt.speech_segment(span)
        for span in spans
    ]
    patches = concat(start, *parts, prompt.turn_end(speaking=False))
    learnt = torch.arange(patches.text.shape[1])[None] >= start.text.shape[1]
    return _example(patches, learnt, learnt & (patches.codes[:, :, 0, 0] != prompt.config.no_speech))


def plain_text(prompt: Prompt, text: str) -> TrainingExample:
    """Build an example of text without turns, which preserves the abilities of the text model."""
    patches = prompt.text_patches([*prompt.encode(text), prompt.special_ids.eos])
    everything = torch.ones_like(patches.text) > 0
    return _example(patches, everything, ~everything)


def unfinished(
    prompt: Prompt, speech: LabelledSpeech, text: str, words: int, pause: int, lang: str, mode: Mode
) -> TrainingExample:
    """Build an example of a question that breaks off after some words; the reply asks the user to go on.

    The codec is causal, so the codes of the first words are the first codes of the question. There is no recording of
    the reply, so only its text counts.

    Args:
        prompt: The prompt.
        speech: The whole question, with more than `words` words.
        text: Its text.
        words: Number of words after which it breaks off.
        pause: Frames of silence that follow.
        lang: Its language.
        mode: s2s or s2t.
    """
    frames = int(speech.words[words][1] * FRAME_RATE)
    codes = torch.cat([speech.codes[:frames], prompt.silence.expand(pause, -1)])
    said = "".join(restore_spacing(speech.words, text)[:words]).rstrip(" ,.:，：。") + UNFINISHED
    reply = GO_ON.get(lang, GO_ON["en"])
    turn = TurnPair(codes, reply, None, said, speech.words[:words], speech.phones[:frames])
    example = training_example(prompt, mode, [turn])
    if mode == "s2s":
        example.text_loss_mask[:, -len(prompt.encode(prompt.template.turn_end)) - 1 :] = False
    return example


def _example(patches: Patches, text_loss_mask: Tensor, code_loss_mask: Tensor) -> TrainingExample:
    phones = torch.full(patches.codes.shape[:3], -1)
    return TrainingExample(patches, patches.text, text_loss_mask, code_loss_mask, phones)
