"""The chat template: conversations as patches. Only this module knows the order of turns and their separators.

A conversation consists of segments of text and speech (segments.py). The text stream of the model's speech holds the
words that are spoken; that of the user's speech holds filler only. A conversation is

    system prompt · [|SpeechGPT|]: greeting ### eos · [|Human|]: turn ### [|SpeechGPT|]: reply ### eos · [|Human|]: …

and each segment is tokenised separately. A reply of the released model is text, or speech whose text stream holds the
words. With chain of modality, which is for small models, a reply is written before it is spoken:

    transcript of the user's speech <|heard|>  (if the user spoke) · answer · <|sosp|> speech <|eosp|>  (if spoken)
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from tokenizers import Tokenizer
from torch import Tensor

from speechgpt2.errors import UserError
from speechgpt2.lm.config import LMConfig
from speechgpt2.lm.grammar import Grammars
from speechgpt2.lm.greetings import Greetings
from speechgpt2.lm.segments import AlignedSpeech, SegmentBuilder, concat
from speechgpt2.lm.tools import tools_system_prompt
from speechgpt2.style import Style
from speechgpt2.types import MODES, Mode, Patches, Speech, Tool

TRANSCRIBE = "You are an helpful assistant. You should transcribe the user's speech.\n\n\n"


class Prompt(SegmentBuilder):
    """Builds the turns of a conversation, patches `[1, P]` on the CPU.

    Args:
        config: The model's configuration.
        tokenizer: Its tokenizer.

    Attributes:
        greetings: The greetings that the model offers, which are its voices.

    Raises:
        UserError: The tokenizer lacks a special token.
    """

    def __init__(self, config: LMConfig, tokenizer: Tokenizer):
        super().__init__(config, tokenizer)
        self.greetings = Greetings({})

    @cached_property
    def grammars(self) -> Grammars:
        """Compiles grammars that a reply's text follows."""
        return Grammars(self, self.config.backbone.vocab)

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
        text = self._system_text(mode) if system is None else system
        if tools and self.template.tools:
            text = f"{text.rstrip()}\n\n{tools_system_prompt(tools)}\n\n\n"
        parts = [self.text_patches(self.encode(text))]
        if greeting is not None:
            parts += [self.reply_start(), self.speech_segment(greeting), self.turn_end(speaking=False)]
        return concat(*parts)

    def styled(self, system: str | None, mode: Mode, style: Style) -> str | None:
        """Append the style's instruction to the system text (the template's own text if `system` is None).

        Returns `system` unchanged if the model follows no instructions or the style has none.
        """
        if not self.template.follows_instructions or not any(style.instruction):
            return system
        text = self._system_text(mode) if system is None else system
        body = text.rstrip()
        return f"{body} {style.instruction_for(body)}{text[len(body) :]}"

    def _system_text(self, mode: Mode) -> str:
        modality = {"s": "speech", "t": "text"}
        return self.template.system.format(input=modality[mode[0]], output=modality[mode[2]])

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

    def transcript(self, text: str) -> Patches:
        """Return a transcript of the user's speech, with which a reply with chain of modality begins."""
        return self.text_patches(self._written_part("", text))

    @property
    def transcription_system(self) -> str | None:
        """The system text with which the reply to speech is its transcript; None if every reply begins with one.

        Raises:
            UserError: If the model was not trained to transcribe.
        """
        if self.template.chain_of_modality:
            return None
        if not self.template.transcribes:
            raise UserError("this model cannot transcribe speech: it was not trained to")
        return TRANSCRIBE

    def require_chain_of_modality(self, purpose: str) -> None:
        """Raise `UserError` if the model has no chain of modality. `purpose` is what needs it."""
        if not self.template.chain_of_modality:
            raise UserError(f"this model cannot {purpose}: it was not trained to write before it speaks")

    def _written_part(self, text: str, transcript: str | None) -> list[int]:
        if not self.template.chain_of_modality or transcript is None:
            return self.encode(text)
        return [*self.encode(transcript), self.special_ids.transcript_end, *self.encode(text)]

    def _to_reply(self) -> Patches:
        return self.text_patches(self.encode(self.template.turn_end + self.template.assistant))
