"""The segments of a conversation as patches: text, and speech with its text stream.

A text segment is one token per patch, without codes. A speech segment is `<|sosp|>`, the speech patches and
`<|eosp|>`. `prompt.Prompt` puts segments together to turns and conversations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, overload

import torch
from tokenizers import Tokenizer
from torch import Tensor

from speechgpt2.errors import UserError
from speechgpt2.lm.alignment import TimedWord, align_tokens, restore_spacing, split_for_tokenizer
from speechgpt2.lm.config import LMConfig
from speechgpt2.lm.tokenizer import special_tokens
from speechgpt2.types import FRAME_RATE, Patches

ROUNDING = 1e-6  # patches; a word that begins exactly at the start of a patch belongs to that patch


class AlignedSpeech(NamedTuple):
    """Speech of the model: `codes [T, K]` in whole patches, and the text token of each patch.

    For training, `phones` holds the phone of each of the first frames, −1 where it is unknown.
    """

    codes: Tensor
    tokens: Sequence[int]
    phones: Tensor | None = None


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


class SegmentBuilder:
    """Builds segments, patches `[1, P]` on the CPU.

    Args:
        config: The model's configuration.
        tokenizer: Its tokenizer.

    Raises:
        UserError: The tokenizer lacks a special token.
    """

    def __init__(self, config: LMConfig, tokenizer: Tokenizer):
        self.config, self.template, self.tokenizer = config, config.prompt, tokenizer
        names = special_tokens(config.prompt)
        ids = [tokenizer.token_to_id(name) for name in names]
        if None in ids:
            raise UserError(f"the tokenizer does not know the special token {names[ids.index(None)]}")
        self.special_ids = SpecialTokenIds(*ids)  # type: ignore[arg-type]
        # On the CPU even if the model is built on the meta device.
        self.silence = torch.tensor([config.prompt.silence], device="cpu")  # [1, K]

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

    def align_speech(
        self,
        codes: Tensor,
        words: Sequence[TimedWord] = (),
        text: str | None = None,
        phones: Tensor | None = None,
    ) -> AlignedSpeech:
        """Prepare a recording as speech of the model: one patch of silence, then the recording.

        The tokens of a word start one patch before the patch of its audio.

        Args:
            codes: The recording, `[T, K]`.
            words: Words with their times in seconds from the start of the recording.
            text: The text with punctuation. Without `words`, its tokens start with the first patch.
            phones: The phone of each frame of the recording, `[T]`, for training.
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
        if phones is not None:
            phones = torch.cat([phones.new_full((patch,), -1), phones])
        return AlignedSpeech(self._pad_with_silence(delayed, len(tokens) * patch), tokens, phones)

    def speech_segment(self, speech: AlignedSpeech) -> Patches:
        """Return speech between the tokens that begin and end it."""
        ids = self.special_ids
        start, end = self.text_patches([ids.speech_start]), self.text_patches([ids.speech_end])
        return concat(start, self.speech_patches(speech.codes, speech.tokens), end)

    def _pad_with_silence(self, codes: Tensor, frames: int) -> Tensor:
        codes = codes.to("cpu", torch.int64)
        return torch.cat([codes, self.silence.expand(frames - codes.shape[0], -1)])


def concat(*parts: Patches) -> Patches:
    """Concatenate patches along P."""
    return Patches(torch.cat([part.text for part in parts], 1), torch.cat([part.codes for part in parts], 1))
