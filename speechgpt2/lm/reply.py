"""Parse the patches of a reply into events: transcript, text and tool calls.

parser = ReplyParser(prompt, user_spoke=True)
for patch in reply: events = parser.read(token, speaking)  # Transcript, TextDelta, ToolCall
events = parser.finish()                                   # text that was held back
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from speechgpt2.lm.prompt import Prompt
from speechgpt2.lm.tools import BEGIN, close_call, parse_tool_calls, partial_call_length
from speechgpt2.types import Patches, TextDelta, ToolCall, Transcript

UNDECODED = 8  # tokens; after so many, bytes that form no character become text as they are
ReplyEvent = Transcript | TextDelta | ToolCall


class ParsedReply(NamedTuple):
    """A whole reply: answer, transcript (None if there is none), `codes [T, K]`, and whether it reached its end."""

    text: str
    transcript: str | None
    codes: Tensor
    ended: bool


class ReplyParser:
    """Parses one reply, patch by patch."""

    def __init__(self, prompt: Prompt, user_spoke: bool, tools: bool = False, prefix: str = ""):
        """Start before the first patch.

        Args:
            prompt: The model's prompt.
            user_spoke: Whether the user spoke. With chain of modality the reply then begins with a transcript.
            tools: Whether the system prompt lists tools, so that the text may call one.
            prefix: The beginning of a tool call that the model was given.
        """
        self.prompt, ids = prompt, prompt.special_ids
        self.tools = tools and prompt.template.tools
        self.silent = {
            ids.speech_start, ids.speech_end, ids.filler, ids.last_filler, ids.transcript_end,
        }  # fmt: skip
        self.transcribing = prompt.template.chain_of_modality and user_spoke
        self.text, self.ended = "", False
        self.transcript: str | None = None
        self._due: list[ReplyEvent] = []  # events that the next patch brings along
        self._called = bool(prefix)  # whether a call has begun
        self._tokens: list[int] = []  # tokens that form no whole character yet
        self._held = prefix  # text that may be the start of the turn's end, or of a tool call
        # If the reply may call tools, trailing white space waits for the next word. Otherwise a line break before a
        # call would be a text of its own.
        self._blank = ""

    @property
    def muted(self) -> bool:
        """Whether the rest of the reply is silent, because its text stream has begun a tool call.

        With chain of modality the words that are spoken have been written before, so they are not cut.
        """
        return self._called and not self.prompt.template.chain_of_modality

    def read(self, token: int, speaking: bool) -> list[ReplyEvent]:
        """Read one patch and return the events that it completes.

        Args:
            token: The patch's text token.
            speaking: Whether the patch holds speech.
        """
        due, self._due = self._due, []
        return due + self._read(token, speaking)

    def end_transcript(self) -> str:
        """End the transcript of the user's speech before its last token is read, and return it."""
        self._due += self._end_transcript(self._take_held())
        return self.transcript or ""

    def write(self, text: str) -> None:
        """Add text that the model has not written itself."""
        self._due += self._delta(text)

    def _read(self, token: int, speaking: bool) -> list[ReplyEvent]:
        if self.prompt.special_ids.ends_reply(token):
            self.ended = True
            return self.finish()
        if token == self.prompt.special_ids.transcript_end and self.transcribing:
            return self._end_transcript(self._take_held())
        words_are_known = speaking and self.prompt.template.chain_of_modality
        if token in self.silent or words_are_known:
            return []
        self._tokens.append(token)
        return self._show(self._take_characters())

    def finish(self) -> list[ReplyEvent]:
        """End the reply and return the events of text that was held back, without the text that ends a turn."""
        rest = self._take_held().removesuffix(self.prompt.template.turn_end)
        if self.transcribing:
            return self._end_transcript(rest)
        return self._events(close_call(rest) if self.tools else rest)

    def speech_continuation_prompt(self) -> Patches | None:
        """Return a prompt that makes the model speak a reply which it was about to end without speech.

        Small models sometimes end a reply so. The prompt is the text so far, `[1, P]`, up to the start of speech. Text
        that is held back is dropped.

        Returns:
            The prompt, or None if there is no text to speak.
        """
        if not self.prompt.template.chain_of_modality or self.tools or self.transcribing or not self.text.strip():
            return None
        self._held, self._tokens = "", []
        return self.prompt.tts_prefix(self.text.strip(), self.transcript)

    def _take_held(self) -> str:
        rest = self._held + self.prompt.tokenizer.decode(self._tokens)
        self._held, self._tokens = "", []
        return rest

    def _end_transcript(self, text: str) -> list[ReplyEvent]:
        self.transcript, self.transcribing = text.strip(), False
        return [Transcript(self.transcript)]

    def _take_characters(self) -> str:
        text = self.prompt.tokenizer.decode(self._tokens)
        if text.endswith("\ufffd") and len(self._tokens) < UNDECODED:  # the next token completes the character
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
            keep = max(keep, partial_call_length(self._held))
            self._called = self._called or BEGIN in self._held
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return self._events(shown)

    def _events(self, text: str) -> list[ReplyEvent]:
        """Return the events of a text: its complete tool calls, and the text between them."""
        if not self.tools:
            return self._delta(text)
        events: list[ReplyEvent] = []
        for part in parse_tool_calls(text):
            events += [part] if isinstance(part, ToolCall) else self._delta(self._hold_blanks(part))
        return events

    def _hold_blanks(self, text: str) -> str:
        text = self._blank + text
        shown = text.rstrip()
        self._blank = text[len(shown) :]
        return shown if self.text else shown.lstrip()

    def _delta(self, text: str) -> list[ReplyEvent]:
        if not text:
            return []
        self.text += text
        return [TextDelta(text)]


def parse_reply(prompt: Prompt, patches: Patches, user_spoke: bool) -> ParsedReply:
    """Parse a whole reply `[1, P]`."""
    parser, no_speech = ReplyParser(prompt, user_spoke), prompt.config.no_speech
    speaking = patches.codes[0, :, 0, 0] != no_speech
    for token, speaks in zip(patches.text[0].tolist(), speaking.tolist(), strict=True):
        parser.read(token, speaks)
    parser.finish()
    codes = patches.codes[0][speaking].flatten(0, 1)
    return ParsedReply(parser.text, parser.transcript, codes.to(torch.int64), parser.ended)
