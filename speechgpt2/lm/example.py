"""Training examples: a conversation as patches, the targets, and the positions that count in the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from speechgpt2.lm.alignment import TimedWord, align_tokens, restore_spacing
from speechgpt2.lm.prompt import Prompt
from speechgpt2.lm.segments import AlignedSpeech, concat
from speechgpt2.types import FRAME_RATE, Mode, Patches, Tool


@dataclass(frozen=True)
class TurnPair:
    """A user's turn and the reply to it, for training.

    `user` is what the user typed, or the codes `[T, K]` of what the user said, or None if the model speaks first or
    reads a text aloud. `speech` is the spoken reply. `transcript` is the text of the user's speech, `user_words` are
    its words with their times, and `user_phones [T]` the phone of each frame, −1 where it is unknown.
    """

    user: str | Tensor | None
    reply: str
    speech: AlignedSpeech | None = None
    transcript: str | None = None
    user_words: Sequence[TimedWord] = ()
    user_phones: Tensor | None = None


class TrainingExample(NamedTuple):
    """A conversation to train on.

    `patches` are `[1, P]`. `targets [1, P]` is the text to predict: that of the patches, except that in the user's
    speech it names the words instead of filler. The loss masks (bool, `[1, P]`) mark the positions whose text token
    and whose codes count; position p is predicted from the hidden state at p − 1. `phones [1, P, G]` are the phones of
    the frames of the user and of spoken replies, −1 where they are unknown and everywhere else.
    """

    patches: Patches
    targets: Tensor
    text_loss_mask: Tensor
    code_loss_mask: Tensor
    phones: Tensor


def training_example(
    prompt: Prompt,
    mode: Mode,
    pairs: Sequence[TurnPair],
    greeting: AlignedSpeech | None = None,
    system: str | None = None,
    tools: Sequence[Tool] = (),
) -> TrainingExample:
    """Build a conversation in which the replies count, transcripts included.

    Args:
        prompt: The model's prompt.
        mode: Modalities of the user and the model. Speech of replies is left out if the model writes.
        pairs: The turns.
        greeting: Speech with which the model opens the conversation.
        system: Text that replaces the template's system text.
        tools: Tools that the model may call.
    """
    start = prompt.system_prompt(mode, greeting, system, tools)
    parts, targets, text_masks = [start], [start.text], [torch.zeros_like(start.text)]
    reply_masks, phones = [torch.zeros_like(start.text)], [_phone_labels(prompt, start, None)]
    for pair in pairs:
        user_spoke = isinstance(pair.user, Tensor)
        turn = _user_turn(prompt, pair.user)
        speech = pair.speech if mode[2] == "s" else None
        if not (pair.reply or speech or prompt.template.chain_of_modality):
            raise ValueError("an empty reply would teach the model to answer nothing")
        reply = prompt.reply(pair.reply, speech, pair.transcript if user_spoke else None)
        words, words_mask = _word_targets(prompt, turn, pair.user_words)
        parts += [turn, reply]
        targets += [words, reply.text]
        text_masks += [words_mask, torch.ones_like(reply.text)]
        reply_masks += [torch.zeros_like(turn.text), torch.ones_like(reply.text)]
        own_phones = speech.phones if speech else None
        phones += [_phone_labels(prompt, turn, pair.user_phones), _phone_labels(prompt, reply, own_phones)]
    patches = concat(*parts)
    code_mask = (torch.cat(reply_masks, dim=1) > 0) & _has_speech(prompt, patches)
    return TrainingExample(
        patches, torch.cat(targets, dim=1), torch.cat(text_masks, dim=1) > 0, code_mask, torch.cat(phones, dim=1)
    )


def _user_turn(prompt: Prompt, user: str | Tensor | None) -> Patches:
    if user is None:
        return prompt.reply_start()
    return prompt.user_text(user) if isinstance(user, str) else prompt.user_speech(user)


def _word_targets(prompt: Prompt, turn: Patches, words: Sequence[TimedWord]) -> tuple[Tensor, Tensor]:
    """Return what to predict in the user's speech, `[1, P]`, and where: each word one patch after its end."""
    if not words:
        return turn.text, torch.zeros_like(turn.text)
    speaking = _has_speech(prompt, turn)
    patch, count, filler = prompt.config.patch_frames, int(speaking.sum()), prompt.special_ids.filler
    timed = [
        (int(end * FRAME_RATE / patch) + 1, prompt.encode_word(word))
        for word, (_, _, end) in zip(restore_spacing(words), words, strict=True)
    ]
    targets = turn.text.clone()
    targets[speaking] = torch.tensor(align_tokens(timed, count, filler, filler)[:count])
    return targets, speaking.long()


def _phone_labels(prompt: Prompt, part: Patches, phones: Tensor | None) -> Tensor:
    """Return `[1, P, G]`: `phones [T]` at the first frames of the part's speech, −1 elsewhere."""
    labels = torch.full(part.codes.shape[:3], -1)
    if phones is not None:
        first = int(_has_speech(prompt, part)[0].nonzero()[0])
        labels[0, first:].view(-1)[: len(phones)] = phones
    return labels


def _has_speech(prompt: Prompt, patches: Patches) -> Tensor:
    return patches.codes[:, :, 0, 0] != prompt.config.no_speech
