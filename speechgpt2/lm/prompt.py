"""Turns as patches: the only place that knows special tokens, silence, and how a dialogue is laid out.

A text segment is one token per patch, without codes. A speech segment is `<|sosp|>`, the speech patches, `<|eosp|>`;
in the text row of its patches stand the words that are spoken there, else filler; the user's speech is all filler. A
dialogue is

    system line · [|SpeechGPT|]: greeting ### eos · [|Human|]: turn ### [|SpeechGPT|]: reply ### eos · [|Human|]: …

and each segment is tokenised on its own. The released model's reply is text, or speech whose text row holds the words.
With `draft`, made for small models, a reply is first written and then spoken:

    transcript of what the user said <|heard|>   (if the user spoke)   answer   <|sosp|> speech <|eosp|>   (if speech
    is asked for)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor

from speechgpt2.errors import UserError
from speechgpt2.lm import tools as calling
from speechgpt2.lm.alignment import TimedWord, align_tokens, restore_spacing, split_for_tokenizer
from speechgpt2.lm.config import LMConfig
from speechgpt2.types import FRAME_RATE, MODES, Mode, Patches, Tool


class AlignedSpeech(NamedTuple):
    """Speech of the model's side: `codes [T, K]` in whole patches, and the token that stands at each patch."""

    codes: Tensor
    row: Sequence[int]


class SpecialTokenIds(NamedTuple):
    """The special tokens; `transcript_end` is −1 in a model without chain of modality."""

    speech_start: int
    speech_end: int
    filler: int
    last_filler: int
    eos: int
    transcript_end: int


@dataclass(frozen=True)
class TurnPair:
    """A turn and its reply, to learn from.

    `user`: what was typed, or `codes [T, K]`, or None where the model begins or reads aloud. `heard`: the words of the
    user's speech with their times, and `phones [T]` the phone of every frame (−1 unknown), to learn listening from.
    """

    user: str | Tensor | None
    reply: str
    spoken: AlignedSpeech | None = None
    transcript: str | None = None
    heard: Sequence[TimedWord] = ()
    phones: Tensor | None = None


class TrainingExample(NamedTuple):
    """`patches` [1, P], and the positions whose text token, and whose codes, are to be learnt (bool `[1, P]`).

    The masks mark targets: what stands at p is predicted from the hidden state at p − 1. `targets` [1, P] is the text
    to predict: that of the patches, except that in the user's speech, which reads as filler, it names the words.
    `phones` [1, P, G] are the phones of the user's frames, −1 where they are unknown and everywhere else.
    """

    patches: Patches
    targets: Tensor
    text_loss_mask: Tensor
    code_loss_mask: Tensor
    phones: Tensor


class Prompt:
    """Builds patches `[1, P]` on the CPU. Errors: `UserError` if the tokenizer lacks a special token."""

    def __init__(self, config: LMConfig, tokenizer: Tokenizer):
        self.config, self.template, self.tokenizer = config, config.prompt, tokenizer
        self.special_ids = self._special_ids()
        self.silence = torch.tensor([config.prompt.silence], device="cpu")  # [1, K]; the model may be built on meta

    def encode(self, text: str) -> list[int]:
        """The tokens of one segment."""
        self.tokenizer.encode_special_tokens = True  # a special token's name in someone's words is just text
        text = text.encode(errors="replace").decode()  # half a surrogate pair, as JSON can hold, is no character
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def _encode_word(self, word: str) -> list[int]:
        return [token for piece in split_for_tokenizer(word) for token in self.encode(piece)]

    # segments

    def text_patches(self, ids: Sequence[int]) -> Patches:
        """One token per patch, no speech."""
        c = self.config
        codes = torch.full((1, len(ids), c.patch_frames, c.codebooks), c.no_speech)
        return Patches(torch.tensor([list(ids)], dtype=torch.int64), codes)

    def speech_patches(self, codes: Tensor, row: Sequence[int] | None = None) -> Patches:
        """Whole patches of `codes [T, K]`; `row` names what is said at each, None is all filler. Errors: ValueError."""
        patch, t = self.config.patch_frames, codes.shape[0]
        if t % patch or (row is not None and len(row) != t // patch):
            raise ValueError(f"{t} frames must be whole patches of {patch}, with one token each")
        ids = [self.special_ids.filler] * (t // patch) if row is None else list(row)
        return Patches(
            torch.tensor([ids], dtype=torch.int64), codes.to("cpu", torch.int64).reshape(1, -1, patch, codes.shape[1])
        )

    # turns

    def system_prompt(
        self, mode: Mode, greeting: AlignedSpeech | None = None, system: str | None = None, tools: Sequence[Tool] = ()
    ) -> Patches:
        """The system line for `mode` (or `system` instead), `tools` if the model can call them, and a greeting.

        Errors: `UserError` for an unknown mode.
        """
        if mode not in MODES:
            raise UserError(f"unknown mode '{mode}'; one of {', '.join(MODES)}")
        side = {"s": "speech", "t": "text"}
        line = self.template.system.format(input=side[mode[0]], output=side[mode[2]]) if system is None else system
        if tools and self.template.tools:
            line = f"{line.rstrip()}\n\n{calling.tools_system_prompt(tools)}\n\n\n"
        parts = [self.text_patches(self.encode(line))]
        if greeting is not None:
            parts += [self.reply_start(), self._spoken(greeting), self._turn_end()]
        return concat(*parts)

    def user_text(self, text: str) -> Patches:
        """A typed turn, up to where the reply begins."""
        return concat(
            self.text_patches(self.encode(self.template.user)), self.text_patches(self.encode(text)), self._to_reply()
        )

    def user_speech(self, codes: Tensor) -> Patches:
        """A spoken turn `codes [T, K]`, up to where the reply begins: the three pieces below in one."""
        whole = codes.shape[0] - codes.shape[0] % self.config.patch_frames
        return concat(self.user_speech_start(), self.speech_patches(codes[:whole]), self.user_speech_end(codes[whole:]))

    def user_speech_start(self) -> Patches:
        """The user begins to speak; whole patches of `speech` follow as they come in."""
        return self.text_patches([*self.encode(self.template.user), self.special_ids.speech_start])

    def user_speech_end(self, rest: Tensor) -> Patches:
        """The user has spoken: the frames `rest [T, K]` that filled no patch, silence, and on to the reply.

        The released rule: some frames of silence, then silence to a whole patch, or a whole one where it is whole.
        """
        patch, frames = self.config.patch_frames, rest.shape[0] + self.template.silence_frames
        tail = self._fill(rest, (frames // patch + 1) * patch)
        return concat(self.speech_patches(tail), self.text_patches([self.special_ids.speech_end]), self._to_reply())

    def reply(self, text: str, spoken: AlignedSpeech | None = None, transcript: str | None = None) -> Patches:
        """A complete reply. With drafts: transcript, text, speech, as given; else the speech, or else the text."""
        parts = []
        if self.template.chain_of_modality or spoken is None:
            parts.append(self.text_patches(self._draft(text, transcript)))
        if spoken is not None:
            parts.append(self._spoken(spoken))
        return concat(*parts, self._turn_end())

    def tts_prefix(self, text: str, transcript: str | None = None) -> Patches:
        """A reply with a draft, up to where the speech of `text` begins."""
        return self.text_patches([*self._draft(text, transcript), self.special_ids.speech_start])

    def reply_start(self) -> Patches:
        """Where a reply begins that no user's turn precedes: a greeting, or reading aloud."""
        return self.text_patches(self.encode(self.template.assistant))

    def tts_prompt(self, text: str) -> Patches:
        """All that precedes the speech if `text` is to be read aloud. Errors: `UserError` in a model without drafts."""
        self.require_chain_of_modality("read a given text aloud")
        return concat(self.system_prompt("t2s"), self.reply_start(), self.tts_prefix(text))

    def turn_end(self, speaking: bool) -> Patches:
        """What a reply that was cut short still needs in history, lest all that follows count as speech."""
        return concat(self.text_patches([self.special_ids.speech_end] if speaking else []), self._turn_end())

    # the model's speech

    def align_speech(self, codes: Tensor, words: Sequence[TimedWord] = (), text: str | None = None) -> AlignedSpeech:
        """A recording `codes [T, K]` as the model is to speak it: a patch of silence first, words in the text row.

        `words` carry seconds from the start of the recording; each stands at the patch where it begins, that is one
        patch ahead of its sound. `text` gives them punctuation; without times it is laid out from the start.
        """
        patch = self.config.patch_frames
        if text and not words:
            words = [(text.strip(), 0.0, 0.0)]
        timed = [
            (
                int(start * FRAME_RATE / patch + 1e-6),
                [i for piece in split_for_tokenizer(word) for i in self.encode(piece)],
            )
            for word, (_, start, _) in zip(restore_spacing(words, text), words, strict=True)
        ]
        row = align_tokens(
            timed, 1 + -(-codes.shape[0] // patch), self.special_ids.filler, self.special_ids.last_filler
        )
        filled = torch.cat([self.silence.expand(patch, -1), codes.to("cpu", torch.int64)])
        return AlignedSpeech(self._fill(filled, len(row) * patch), row)

    # learning

    def example(
        self, mode: Mode, exchanges: Sequence[TurnPair], greeting: AlignedSpeech | None = None
    ) -> TrainingExample:
        """A dialogue to learn from: its replies, transcripts included. `mode` says which sides are spoken."""
        opening = self.system_prompt(mode, greeting)
        parts, named = [opening], [(opening.text, torch.zeros_like(opening.text))]
        own, phones = [torch.zeros_like(opening.text)], [self._phones(opening, None)]
        for exchange in exchanges:
            heard = isinstance(exchange.user, Tensor)
            spoken = exchange.spoken if mode[2] == "s" else None
            turn = self._turn(exchange.user)
            reply = self.reply(exchange.reply, spoken, exchange.transcript if heard else None)
            parts += [turn, reply]
            named += [self._listening(turn, exchange.heard), (reply.text, torch.ones_like(reply.text))]
            own += [torch.zeros_like(turn.text), torch.ones_like(reply.text)]
            phones += [self._phones(turn, exchange.phones), self._phones(reply, None)]
        patches = concat(*parts)
        targets, learnt = (torch.cat(part, dim=1) for part in zip(*named, strict=True))
        speaking = patches.codes[:, :, 0, 0] != self.config.no_speech
        code_loss_mask = (torch.cat(own, dim=1) > 0) & speaking
        return TrainingExample(patches, targets, learnt > 0, code_loss_mask, torch.cat(phones, dim=1))

    def _listening(self, turn: Patches, words: Sequence[TimedWord]) -> tuple[Tensor, Tensor]:
        """What to predict while listening, `[1, P]`, and where: each word, one patch after the one in which it ends."""
        if not words:
            return turn.text, torch.zeros_like(turn.text)
        speaking = turn.codes[:, :, 0, 0] != self.config.no_speech
        patch, count = self.config.patch_frames, int(speaking.sum())
        timed = [
            (int(end * FRAME_RATE / patch) + 1, self._encode_word(word))
            for word, (_, _, end) in zip(restore_spacing(words), words, strict=True)
        ]
        targets = turn.text.clone()
        targets[speaking] = torch.tensor(
            align_tokens(timed, count, self.special_ids.filler, self.special_ids.filler)[:count]
        )
        return targets, speaking.long()

    def _phones(self, part: Patches, phones: Tensor | None) -> Tensor:
        """`[1, P, G]`: the user's `phones [T]` at the frames of the speech that they belong to, else −1."""
        labels = torch.full(part.codes.shape[:3], -1)
        if phones is not None:
            first = int((part.codes[0, :, 0, 0] != self.config.no_speech).nonzero()[0])
            labels[0, first:].view(-1)[: len(phones)] = phones
        return labels

    def require_chain_of_modality(self, what: str) -> None:
        """Errors: `UserError` in a model without drafts."""
        if not self.template.chain_of_modality:
            raise UserError(f"this model cannot {what}: it was not trained to write before it speaks")

    def _turn(self, user: str | Tensor | None) -> Patches:
        if user is None:
            return self.reply_start()
        return self.user_text(user) if isinstance(user, str) else self.user_speech(user)

    def _draft(self, text: str, transcript: str | None) -> list[int]:
        """What is written before it is spoken; of models without drafts the text alone."""
        heard = (
            [*self.encode(transcript), self.special_ids.transcript_end]
            if self.template.chain_of_modality and transcript is not None
            else []
        )
        return [*heard, *self.encode(text)]

    def _spoken(self, spoken: AlignedSpeech) -> Patches:
        start, end = (
            self.text_patches([self.special_ids.speech_start]),
            self.text_patches([self.special_ids.speech_end]),
        )
        return concat(start, self.speech_patches(spoken.codes, spoken.row), end)

    def _turn_end(self) -> Patches:
        return self.text_patches([*self.encode(self.template.turn_end), self.special_ids.eos])

    def _to_reply(self) -> Patches:
        return self.text_patches(self.encode(self.template.turn_end + self.template.assistant))

    def _fill(self, codes: Tensor, frames: int) -> Tensor:
        """`codes` and as much silence as makes `frames` of them."""
        codes = codes.to("cpu", torch.int64)
        return torch.cat([codes, self.silence.expand(frames - codes.shape[0], -1)])

    def _special_ids(self) -> SpecialTokenIds:
        w = self.template
        names = [
            w.speech_start,
            w.speech_end,
            w.filler,
            w.last_filler,
            w.eos,
            *([w.transcript_end] if w.chain_of_modality else []),
        ]
        ids = [self.tokenizer.token_to_id(name) for name in names]
        if None in ids:
            raise UserError(f"the tokenizer does not know the special token {names[ids.index(None)]}")
        return SpecialTokenIds(*ids, *([] if w.chain_of_modality else [-1]))  # type: ignore[arg-type]


def concat(*parts: Patches) -> Patches:
    """One after the other along P."""
    return Patches(torch.cat([part.text for part in parts], 1), torch.cat([part.codes for part in parts], 1))
