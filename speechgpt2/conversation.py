"""The turns of a conversation as text or codes: what `chat` (one conversation, synchronous) and `engine` share.

`ConversationStyle` is how `chat` speaks; the engine's counterpart, which can roll back, is `engine.reply_styles`.

They also share the rules of a reply: `lm.reply` (patches to events) and `lm.stop` (the stop rule).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from speechgpt2.audio import check_audio
from speechgpt2.codec.config import CodecConfig
from speechgpt2.codec.model import Codec, check_codes
from speechgpt2.dsp.delivery import Delivery
from speechgpt2.errors import UserError
from speechgpt2.lm import tools
from speechgpt2.lm.model import SpeechLM
from speechgpt2.lm.prompt import Prompt
from speechgpt2.lm.reply import ReplyParser
from speechgpt2.lm.style_request import TranscriptReader, answer_to, request_in
from speechgpt2.style import NORMAL, Style, delivered
from speechgpt2.style_requests import StyleRequest
from speechgpt2.types import Mode, Patches, Role, Speech, Text, ToolCall, Turn


@dataclass(frozen=True)
class Reply:
    """A reply.

    Attributes:
        text: The text of the reply.
        pcm: The speech, `[N]` float32 at 24 kHz; empty for a written reply.
        codes: The codes of the speech, `[T, K]`.
        transcript: The model's transcript of the user's speech; None for a model that writes none.
        reason: Why the reply ended.
        calls: Tools that the model calls.
    """

    text: str
    pcm: np.ndarray
    codes: np.ndarray
    transcript: str | None
    reason: Literal["stop", "length", "interrupted"]
    calls: tuple[ToolCall, ...] = ()


class HistoryTurn(NamedTuple):
    """A turn in the form of the model's prompt: `text` that was written or said, `codes [T, K]` if it was spoken."""

    role: Role
    text: str | None
    codes: Tensor | None


def check_same_codes(codec: Codec, lm: SpeechLM) -> None:
    """Check that a codec and a language model belong together.

    Raises:
        UserError: The codec's codes are not those that the language model speaks.
    """
    ours, theirs = codec.config.quantizer, lm.config
    if (ours.codebooks, ours.size) != (theirs.codebooks, theirs.codebook_size):
        raise UserError(
            f"the codec has {ours.codebooks} codebooks of {ours.size} codes, the language model speaks "
            f"{theirs.codebooks} of {theirs.codebook_size}"
        )


def speech_codes(speech: Speech, codec: CodecConfig, encode: Callable[[np.ndarray], Tensor]) -> Tensor:
    """Return the codes `[T, K]` (int64) of a speech segment, encoded by `encode(pcm [N])` if it has none.

    Raises:
        UserError: The segment has neither codes of this codec nor samples.
    """
    if speech.codes is not None:
        codes = torch.as_tensor(speech.codes, dtype=torch.int64)
        check_codes(codes, codec)
        return codes
    if speech.pcm is None or not np.size(speech.pcm):
        raise UserError("speech must hold samples (float32 at 24 kHz) or codes")
    return encode(check_audio(speech.pcm))


def history_turn(turn: Turn, codes_of: Callable[[Speech], Tensor]) -> HistoryTurn:
    """Convert a turn of the user, the assistant or a tool. Its speech is encoded by `codes_of`.

    Raises:
        UserError: It is a system turn, or does not hold exactly one segment (tool calls and results aside).
    """
    if turn.role == "system":
        raise UserError("a system turn can only be the first; in a live session it is the setting `instructions`")
    if (rendered := tools.render_tool_turn(turn)) is not None:
        return HistoryTurn(turn.role, rendered, None)
    match turn.segments:
        case (Text(text),):
            return HistoryTurn(turn.role, text, None)
        case (Speech() as speech,):
            return HistoryTurn(turn.role, speech.text, codes_of(speech))
    found = ", ".join(type(segment).__name__ for segment in turn.segments) or "nothing"
    raise UserError(f"a turn of the {turn.role} must hold one segment, Text or Speech, not {found}")


def mode_of(turn: Turn) -> Mode:
    """Return the mode of a conversation that a turn begins."""
    return "s2s" if any(isinstance(segment, Speech) for segment in turn.segments) else "t2t"


def text_of(turn: Turn) -> str:
    """Return the written segments of a turn."""
    return "\n".join(segment.text for segment in turn.segments if isinstance(segment, Text))


class ConversationStyle:
    """How the replies of one conversation are spoken, and what the user asks for.

    Args:
        prompt: The model's prompt layout.
        style: The style, until the user asks for another one that lasts.
        speed: How many times as fast as the style replies are spoken.

    Attributes:
        delivery: Speaks the reply in progress.
        last_answer: The text of the last reply.
    """

    def __init__(self, prompt: Prompt, style: Style = NORMAL, speed: float = 1.0):
        self.style, self.speed = style, speed
        self.last_answer = ""
        self._prompt = prompt
        self._typed = ""  # the last typed turn
        self._request: StyleRequest | None = None  # in it
        self._reply_style, self._answers_tool = style, False
        self.delivery = self._delivery_in(style)

    def read_turn(self, turn: HistoryTurn) -> str:
        """Look for a request in a typed turn of the user; returns the turn's text without it."""
        self._typed, self._answers_tool = turn.text or "", turn.role == "tool"
        typed = turn.role == "user" and turn.codes is None
        self._request = request_in(self._prompt, self._typed) if typed else None
        return self._request.rest if self._request is not None and self._request.rest else self._typed

    def begin_reply(self, parser: ReplyParser, speak: bool) -> tuple[TranscriptReader | None, list[Patches]]:
        """Begin to speak a reply, in the style that the turn before it asks for.

        Returns:
            What reads the transcript of the reply, and the patches with which it begins if it is known already.
        """
        if not self._answers_tool:  # otherwise the style is that of the reply with the call
            self._reply_style = self.style
        self.delivery = self._delivery_in(self._reply_style)
        request, self._request = self._request, None
        if not speak:
            return None, []
        reader = TranscriptReader(parser, self.last_answer, self._follow)
        if request is None:
            return reader, []
        self._follow(request)
        answer = answer_to(request, self._typed, self.last_answer)
        if answer is None or not self._prompt.template.chain_of_modality:
            return reader, []
        parser.write(answer)
        return reader, [self._prompt.tts_prefix(answer)]

    def _follow(self, request: StyleRequest) -> None:
        self._reply_style = request.applied(self.style)
        self.delivery = self._delivery_in(self._reply_style)
        if request.lasting:
            self.style = self._reply_style

    def _delivery_in(self, style: Style) -> Delivery:
        return Delivery(delivered(style, self.speed, self._prompt.template.follows_instructions))
