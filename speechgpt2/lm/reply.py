"""Patches of a reply back into words: what was heard, what is answered, what is said, which tools are called.

reader = ReplyReader(prompt, spoken=True)
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
Known = Transcript | TextDelta | ToolCall


class Parsed(NamedTuple):
    """A whole reply: answer, transcript (None where there is none), `codes [T, K]`, and whether it reached its end."""

    text: str
    transcript: str | None
    codes: Tensor
    ended: bool


class ReplyReader:
    """Reads one reply, patch by patch. `spoken`: the user spoke, so a reply with a draft begins with a transcript.
    `tools`: the model was told of some, so what is written may call one. `begun`: what the reply was given to begin
    with, of a call.
    """

    def __init__(self, prompt: Prompt, spoken: bool, tools: bool = False, begun: str = ""):
        self.prompt, ids = prompt, prompt.ids
        self.tools = tools and prompt.words.tools
        self.silent = {ids.speech_start, ids.speech_end, ids.filler, ids.last_filler, ids.eos, ids.heard}
        self.transcribing = prompt.words.draft and spoken
        self.text, self.ended = "", False
        self.transcript: str | None = None
        self._tokens: list[int] = []  # not yet characters
        self._held = begun  # may be the beginning of the turn's end, or of a call
        self._blank = ""  # where calls are possible: told with the word after it, lest a line break be all that is said

    def read(self, token: int, speaking: bool) -> list[Known]:
        """Take in one patch: its text token and whether it holds speech. Returns what became known."""
        if token == self.prompt.ids.eos:
            self.ended = True
            return self.finish()
        if token == self.prompt.ids.heard and self.transcribing:
            return self._heard(self._rest())
        words_are_known = speaking and self.prompt.words.draft  # the draft held them
        if token in self.silent or words_are_known:
            return []
        self._tokens.append(token)
        return self._show(self._characters())

    def finish(self) -> list[Known]:
        """The reply is over: what was held back, without the words that end a turn; a transcript that did not end."""
        rest = self._rest().removesuffix(self.prompt.words.turn_end)
        return self._heard(rest) if self.transcribing else self._tell(rest)

    def unspoken(self) -> Patches | None:
        """For a reply that would end without the speech that it is to have, as a small model's now and then does: what
        it has written, `[1, P]`, up to where its speech begins, so that it goes on from there, and the words that were
        to end it are forgotten. None if that is nothing.
        """
        if not self.prompt.words.draft or self.tools or self.transcribing or not self.text.strip():
            return None
        self._held, self._tokens = "", []
        return self.prompt.aloud(self.text.strip(), self.transcript)

    def _rest(self) -> str:
        rest = self._held + self.prompt.tokenizer.decode(self._tokens)
        self._held, self._tokens = "", []
        return rest

    def _heard(self, text: str) -> list[Known]:
        self.transcript, self.transcribing = text.strip(), False
        return [Transcript(self.transcript)]

    def _characters(self) -> str:
        text = self.prompt.tokenizer.decode(self._tokens)
        if text.endswith("\ufffd") and len(self._tokens) < UNDECODED:  # the rest of a character is to come
            return ""
        self._tokens = []
        return text

    def _show(self, text: str) -> list[Known]:
        self._held += text
        if self.transcribing:
            return []
        end = self.prompt.words.turn_end
        keep = max(n for n in range(min(len(end), len(self._held)) + 1) if self._held.endswith(end[:n]))
        if self.tools:
            keep = max(keep, calling.beginning(self._held))
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return self._tell(shown)

    def _tell(self, text: str) -> list[Known]:
        """What is known: text, and whole calls in it."""
        if not self.tools:
            return self._emit(text)
        known: list[Known] = []
        for part in calling.split(text):
            known += [part] if isinstance(part, ToolCall) else self._emit(self._without_blanks(part))
        return known

    def _without_blanks(self, text: str) -> str:
        text = self._blank + text
        shown = text.rstrip()
        self._blank = text[len(shown) :]
        return shown if self.text else shown.lstrip()

    def _emit(self, text: str) -> list[Known]:
        if not text:
            return []
        self.text += text
        return [TextDelta(text)]


def parse(prompt: Prompt, patches: Patches, spoken: bool) -> Parsed:
    """A whole reply `[1, P]` at once. `spoken`: the user spoke."""
    reader, no_speech = ReplyReader(prompt, spoken), prompt.config.no_speech
    speaking = patches.codes[0, :, 0, 0] != no_speech
    for token, speaks in zip(patches.text[0].tolist(), speaking.tolist(), strict=True):
        reader.read(token, speaks)
    reader.finish()
    codes = patches.codes[0][speaking].flatten(0, 1)
    return Parsed(reader.text, reader.transcript, codes.to(torch.int64), reader.ended)
