"""Patches of a reply back into words: what was heard, what is answered, what is said, which tools are called.

reader = ReplyParser(prompt, user_spoke=True)
for patch in reply: events = reader.read(token, codes)     # Transcript, TextDelta, ToolCall
reader.finish()                                            # what was held back
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from speechgpt2.lm import tools as calling
from speechgpt2.lm.prompt import Prompt
from speechgpt2.types import Patches, TextDelta, ToolCall, Transcript

UNDECODED = 8  # tokens after which bytes that form no character are shown as they are
ReplyEvent = Transcript | TextDelta | ToolCall


class ParsedReply(NamedTuple):
    """A whole reply: answer, transcript (None where there is none), `codes [T, K]`, and whether it reached its end."""

    text: str
    transcript: str | None
    codes: Tensor
    ended: bool


class ReplyParser:
    """Reads one reply, patch by patch. `user_spoke`: the user spoke, so a reply with a draft begins with a transcript.
    `tools`: the model was told of some, so what is written may call one. `prefix`: what the reply was given to begin
    with, of a call.
    """

    def __init__(self, prompt: Prompt, user_spoke: bool, tools: bool = False, prefix: str = ""):
        self.prompt, ids = prompt, prompt.special_ids
        self.tools = tools and prompt.template.tools
        self.silent = {ids.speech_start, ids.speech_end, ids.filler, ids.last_filler, ids.eos, ids.transcript_end}
        self.transcribing = prompt.template.chain_of_modality and user_spoke
        self.text, self.ended = "", False
        self.transcript: str | None = None
        self._tokens: list[int] = []  # not yet characters
        self._held = prefix  # may be the beginning of the turn's end, or of a call
        self._blank = ""  # where calls are possible: told with the word after it, lest a line break be all that is said

    def read(self, token: int, speaking: bool) -> list[ReplyEvent]:
        """Take in one patch: its text token and whether it holds speech. Returns what became known."""
        if token == self.prompt.special_ids.eos:
            self.ended = True
            return self.finish()
        if token == self.prompt.special_ids.transcript_end and self.transcribing:
            return self._heard(self._rest())
        words_are_known = speaking and self.prompt.template.chain_of_modality  # the draft held them
        if token in self.silent or words_are_known:
            return []
        self._tokens.append(token)
        return self._show(self._characters())

    def finish(self) -> list[ReplyEvent]:
        """The reply is over: what was held back, without the words that end a turn; a transcript that did not end."""
        rest = self._rest().removesuffix(self.prompt.template.turn_end)
        return self._heard(rest) if self.transcribing else self._tell(rest)

    def speech_continuation_prompt(self) -> Patches | None:
        """For a reply that would end without the speech that it is to have, as a small model's now and then does: what
        it has written, `[1, P]`, up to where its speech begins, so that it goes on from there, and the words that were
        to end it are forgotten. None if that is nothing.
        """
        if not self.prompt.template.chain_of_modality or self.tools or self.transcribing or not self.text.strip():
            return None
        self._held, self._tokens = "", []
        return self.prompt.tts_prefix(self.text.strip(), self.transcript)

    def _rest(self) -> str:
        rest = self._held + self.prompt.tokenizer.decode(self._tokens)
        self._held, self._tokens = "", []
        return rest

    def _heard(self, text: str) -> list[ReplyEvent]:
        self.transcript, self.transcribing = text.strip(), False
        return [Transcript(self.transcript)]

    def _characters(self) -> str:
        text = self.prompt.tokenizer.decode(self._tokens)
        if text.endswith("\ufffd") and len(self._tokens) < UNDECODED:  # the rest of a character is to come
            return ""
        self._tokens = []
        return text

    def _show(self, text: str) -> list[ReplyEvent]:
        self._held += text
        if self.transcribing:
            return []
        end = self.prompt.template.turn_end
        keep = max(n for n in range(min(len(end), len(self._held)) + 1) if self._held.endswith(end[:n]))
        if self.tools:
            keep = max(keep, calling.partial_call_length(self._held))
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return self._tell(shown)

    def _tell(self, text: str) -> list[ReplyEvent]:
        """What is known: text, and whole calls in it."""
        if not self.tools:
            return self._emit(text)
        known: list[ReplyEvent] = []
        for part in calling.parse_tool_calls(text):
            known += [part] if isinstance(part, ToolCall) else self._emit(self._without_blanks(part))
        return known

    def _without_blanks(self, text: str) -> str:
        text = self._blank + text
        shown = text.rstrip()
        self._blank = text[len(shown) :]
        return shown if self.text else shown.lstrip()

    def _emit(self, text: str) -> list[ReplyEvent]:
        if not text:
            return []
        self.text += text
        return [TextDelta(text)]


def parse_reply(prompt: Prompt, patches: Patches, user_spoke: bool) -> ParsedReply:
    """A whole reply `[1, P]` at once. `user_spoke`: the user spoke."""
    reader, no_speech = ReplyParser(prompt, user_spoke), prompt.config.no_speech
    speaking = patches.codes[0, :, 0, 0] != no_speech
    for token, speaks in zip(patches.text[0].tolist(), speaking.tolist(), strict=True):
        reader.read(token, speaks)
    reader.finish()
    codes = patches.codes[0][speaking].flatten(0, 1)
    return ParsedReply(reader.text, reader.transcript, codes.to(torch.int64), reader.ended)
