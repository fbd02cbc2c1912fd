"""The chat template: conversations as patches. Only this module knows special tokens, silence and the order of turns.

A text segment is one token per patch, without codes. A speech segment is `<|sosp|>`, the speech patches and
`<|eosp|>`. The text stream of the model's speech holds the words that are spoken; that of the user's speech holds
filler only. A conversation is

    system prompt · [|SpeechGPT|]: greeting ### eos · [|Human|]: turn ### [|SpeechGPT|]: reply ### eos · [|Human|]: …

and each segment is tokenised separately. A reply of the released model is text, or speech whose text stream holds the
words. With chain of modality, which is for small models, a reply is written before it is spoken:

    transcript of the user's speech <|heard|>  (if the user spoke) · answer · <|sosp|> speech <|eosp|>  (if spoken)
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple, overload

import torch
from tokenizers import Tokenizer
from torch import Tensor

from speechgpt2.errors import UserError
from speechgpt2.lm.alignment import TimedWord, align_tokens, restore_spacing, split_for_tokenizer
from speechgpt2.lm.config import LMConfig
from speechgpt2.lm.grammar import Grammars
from speechgpt2.lm.greetings import Greetings
from speechgpt2.lm.tokenizer import special_tokens
from speechgpt2.lm.tools import tools_system_prompt
from speechgpt2.types import FRAME_RATE, MODES, Mode, Patches, Speech, Tool

ROUNDING = 1e-6  # patches; a word that begins exactly at the start of a patch belongs to that patch


class AlignedSpeech(NamedTuple):
    """Speech of the model: `codes [T, K]` in whole patches, and the text token of each patch."""

    codes: Tensor
    tokens: Sequence[int]


class SpecialTokenIds(NamedTuple):
    """Ids of the special tokens. `transcript_end` is −1 in a model without chain of modality."""

    eos: int
    speech_start: int
    speech_end: int
    filler: int
    last_filler: int
    transcript_end: int = -1

    @overload
    def ends_reply(self, text: int) -> bool: ...
    @overload
    def ends_reply(self, text: Tensor) -> Tensor: ...

    def ends_reply(self, text: int | Tensor) -> bool | Tensor:
        """Return whether text tokens end their reply. `stop.StopRule` holds the other reasons to end one."""
        return text == self.eos


class Prompt:
    """Builds patches `[1, P]` on the CPU.

    Attributes:
        greetings: The greetings that the model offers, which are its voices.
    """

    def __init__(self, config: LMConfig, tokenizer: Tokenizer):
        """Look up the special tokens. Raises `UserError` if the tokenizer lacks one."""
        self.config, self.template, self.tokenizer = config, config.prompt, tokenizer
        names = special_tokens(config.prompt)
        ids = [tokenizer.token_to_id(name) for name in names]
        if None in ids:
            raise UserError(f"the tokenizer does not know the special token {names[ids.index(None)]}")
        self.special_ids = SpecialTokenIds(*ids)  # type: ignore[arg-type]
        # On the CPU even if the model is built on the meta device.
        self.silence = torch.tensor([config.prompt.silence], device="cpu")  # [1, K]
        self.greetings = Greetings({})

    @cached_property
    def grammars(self) -> Grammars:
        """Compiles grammars that a reply's text follows."""
        return Grammars(self, self.config.backbone.vocab)

    def encode(self, text: str) -> list[int]:
        """Tokenise one segment."""
        # The name of a special token in a user's text is ordinary text. Half a surrogate pair, which JSON allows, is
        # replaced.
        self.tokenizer.encode_special_tokens = True
        text = text.encode(errors="replace").decode()
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def encode_word(self, word: str) -> list[int]:
        """Tokenise one word of the text stream of speech, Chinese character by character."""
        return [token for piece in split_for_tokenizer(word) for token in self.encode(piece)]

    # Segments

    def text_patches(self, ids: Sequence[int]) -> Patches:
        """Return one patch per token, without speech."""
        c = self.config
        codes = torch.full((1, len(ids), c.patch_frames, c.codebooks), c.no_speech)
        return Patches(torch.tensor([list(ids)], dtype=torch.int64), codes)

    def speech_patches(self, codes: Tensor, tokens: Sequence[int] | None = None) -> Patches:
        """Return the patches of speech.

        Args:
            codes: `[T, K]`, in whole patches.
            tokens: The text token of each patch; None means filler everywhere.

        Raises:
            ValueError: If the frames are not whole patches with one token each.
        """
        patch, t = self.config.patch_frames, codes.shape[0]
        if t % patch or (tokens is not None and len(tokens) != t // patch):
            raise ValueError(f"{t} frames must be whole patches of {patch}, with one token each")
        ids = [self.special_ids.filler] * (t // patch) if tokens is None else list(tokens)
        return Patches(
            torch.tensor([ids], dtype=torch.int64), codes.to("cpu", torch.int64).reshape(1, -1, patch, codes.shape[1])
        )

    def align_speech(self, codes: Tensor, words: Sequence[TimedWord] = (), text: str | None = None) -> AlignedSpeech:
        """Prepare a recording as speech of the model: one patch of silence, then the recording.

        The tokens of a word start one patch before the patch of its audio.

        Args:
            codes: The recording, `[T, K]`.
            words: Words with their times in seconds from the start of the recording.
            text: The text with punctuation. Without `words`, its tokens start with the first patch.
        """
        patch = self.config.patch_frames
        if text and not words:
            words = [(text.strip(), 0.0, 0.0)]
        timed = [
            (int(start * FRAME_RATE / patch + ROUNDING), self.encode_word(word))
            for word, (_, start, _) in zip(restore_spacing(words, text), words, strict=True)
        ]
        ids, patches = self.special_ids, 1 + -(-codes.shape[0] // patch)
        tokens = align_tokens(timed, patches, ids.filler, ids.last_filler)
        delayed = torch.cat([self.silence.expand(patch, -1), codes.to("cpu", torch.int64)])
        return AlignedSpeech(self._pad_with_silence(delayed, len(tokens) * patch), tokens)

    def greeting(self, speech: Speech) -> AlignedSpeech:
        """Return encoded speech as a greeting. If it has no token of each patch, `align_speech` places its text."""
        codes = torch.as_tensor(speech.codes, dtype=torch.int64)
        if speech.tokens is None:
            return self.align_speech(codes, text=speech.text)
        return AlignedSpeech(codes, speech.tokens)

    def opening(self, voice: str | None, mode: Mode) -> AlignedSpeech | None:
        """Return the greeting of a voice, None if a conversation of this mode has none.

        Raises:
            UserError: If there is no such voice.
        """
        speech = self.greetings.opening(voice, mode)
        return None if speech is None else self.greeting(speech)

    # Turns

    def system_prompt(
        self, mode: Mode, greeting: AlignedSpeech | None = None, system: str | None = None, tools: Sequence[Tool] = ()
    ) -> Patches:
        """Return the patches before all turns: the system text, tools, and the greeting.

        Args:
            mode: Modalities of the user and the model.
            greeting: Speech with which the model opens the conversation.
            system: Text that replaces the template's system text.
            tools: Tools to list, if the model was trained to call tools.

        Raises:
            UserError: If the mode is unknown.
        """
        if mode not in MODES:
            raise UserError(f"unknown mode '{mode}'; one of {', '.join(MODES)}")
        modality = {"s": "speech", "t": "text"}
        text = system
        if text is None:
            text = self.template.system.format(input=modality[mode[0]], output=modality[mode[2]])
        if tools and self.template.tools:
            text = f"{text.rstrip()}\n\n{tools_system_prompt(tools)}\n\n\n"
        parts = [self.text_patches(self.encode(text))]
        if greeting is not None:
            parts += [self.reply_start(), self.speech_segment(greeting), self.turn_end(speaking=False)]
        return concat(*parts)

    def user_text(self, text: str) -> Patches:
        """Return a typed turn, up to the start of the reply."""
        user = self.text_patches(self.encode(self.template.user))
        return concat(user, self.text_patches(self.encode(text)), self._to_reply())

    def user_speech(self, codes: Tensor) -> Patches:
        """Return a spoken turn `codes [T, K]`, up to the start of the reply."""
        whole = codes.shape[0] - codes.shape[0] % self.config.patch_frames
        return concat(self.user_speech_start(), self.speech_patches(codes[:whole]), self.user_speech_end(codes[whole:]))

    def user_speech_start(self) -> Patches:
        """Return the start of a spoken turn. Whole `speech_patches` follow as the user speaks."""
        return self.text_patches([*self.encode(self.template.user), self.special_ids.speech_start])

    def user_speech_end(self, rest: Tensor) -> Patches:
        """Return the end of a spoken turn, up to the start of the reply.

        As in the released model: after some frames of silence, silence fills the last patch; if that is whole already,
        one more patch of silence follows.

        Args:
            rest: The last frames `[T, K]`, less than a patch.
        """
        patch, frames = self.config.patch_frames, rest.shape[0] + self.template.silence_frames
        tail = self._pad_with_silence(rest, (frames // patch + 1) * patch)
        return concat(self.speech_patches(tail), self.text_patches([self.special_ids.speech_end]), self._to_reply())

    def reply_start(self) -> Patches:
        """Return the start of a reply that does not follow a turn of the user: a greeting, or a text to read aloud."""
        return self.text_patches(self.encode(self.template.assistant))

    def reply(self, text: str, speech: AlignedSpeech | None = None, transcript: str | None = None) -> Patches:
        """Return a complete reply: all given parts with chain of modality, otherwise only speech, or only text."""
        parts = []
        if self.template.chain_of_modality or speech is None:
            parts.append(self.text_patches(self._written_part(text, transcript)))
        if speech is not None:
            parts.append(self.speech_segment(speech))
        return concat(*parts, self.turn_end(speaking=False))

    def turn_end(self, speaking: bool) -> Patches:
        """Return the end of a reply. `speaking`: the reply was cut off within speech, which is ended first."""
        end = [*self.encode(self.template.turn_end), self.special_ids.eos]
        return self.text_patches([self.special_ids.speech_end, *end] if speaking else end)

    # Text to speech

    def tts_prefix(self, text: str, transcript: str | None = None) -> Patches:
        """Return the written part of a reply with chain of modality, up to the start of its speech."""
        return self.text_patches([*self._written_part(text, transcript), self.special_ids.speech_start])

    def tts_prompt(self, text: str, greeting: AlignedSpeech | None = None) -> Patches:
        """Return everything up to the speech that reads `text` aloud, in the voice of `greeting`.

        Raises:
            UserError: If the model has no chain of modality.
        """
        self.require_chain_of_modality("read a given text aloud")
        return concat(self.system_prompt("t2s", greeting), self.reply_start(), self.tts_prefix(text))

    def require_chain_of_modality(self, purpose: str) -> None:
        """Raise `UserError` if the model has no chain of modality. `purpose` is what needs it."""
        if not self.template.chain_of_modality:
            raise UserError(f"this model cannot {purpose}: it was not trained to write before it speaks")

    def _written_part(self, text: str, transcript: str | None) -> list[int]:
        if not self.template.chain_of_modality or transcript is None:
            return self.encode(text)
        return [*self.encode(transcript), self.special_ids.transcript_end, *self.encode(text)]

    def speech_segment(self, speech: AlignedSpeech) -> Patches:
        """Return speech between the tokens that begin and end it."""
        ids = self.special_ids
        start, end = self.text_patches([ids.speech_start]), self.text_patches([ids.speech_end])
        return concat(start, self.speech_patches(speech.codes, speech.tokens), end)

    def _to_reply(self) -> Patches:
        return self.text_patches(self.encode(self.template.turn_end + self.template.assistant))

    def _pad_with_silence(self, codes: Tensor, frames: int) -> Tensor:
        codes = codes.to("cpu", torch.int64)
        return torch.cat([codes, self.silence.expand(frames - codes.shape[0], -1)])


def concat(*parts: Patches) -> Patches:
    """Concatenate patches along P."""
    return Patches(torch.cat([part.text for part in parts], 1), torch.cat([part.codes for part in parts], 1))
