"""The turns of a conversation as text or codes: what `chat` (one conversation, synchronous) and `engine` share.

`ConversationStyle` is how `chat` speaks; the engine's counterpart, which can roll back, is `engine.reply_styles`.

They also share the rules of a reply: `lm.reply` (patches to events) and `lm.stop` (the stop rule); and whose a saved
session is: `session_header`, `check_same_model`.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from speechgpt2 import config
from speechgpt2.audio import check_audio
from speechgpt2.codec.model import Codec, check_codes
from speechgpt2.dsp.delivery import Delivery
from speechgpt2.errors import UserError
from speechgpt2.lm import tools
from speechgpt2.lm.model import SpeechLM
from speechgpt2.lm.prompt import Prompt
from speechgpt2.lm.reply import ReplyParser, parse_reply
from speechgpt2.lm.style_request import answer_to, request_in
from speechgpt2.lm.transcript_reader import TranscriptReader
from speechgpt2.sessions.entries import Header, MadeBy, PatchBlock
from speechgpt2.style import NORMAL, Style, delivered
from speechgpt2.style_requests import StyleRequest
from speechgpt2.types import (
    AudioDelta,
    Event,
    Mode,
    Patches,
    ReplyDone,
    Role,
    Speech,
    Text,
    TextDelta,
    ToolCall,
    Transcript,
    Turn,
)


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


class SpeechEncoder(Protocol):
    """Encodes speech: `SpeechGPT` and the engine's `InputEncoder`."""

    def encode_speech(self, speech: Speech) -> Tensor:
        """Return the codes `[T, K]` (int64) of a speech segment. Raises `UserError` if it has no sound."""
        ...


def speech_codes(speech: Speech, codec: Codec, device: torch.device) -> Tensor:
    """Return the codes `[T, K]` (int64) of a speech segment, encoded on the codec's device if it has none.

    Raises:
        UserError: The segment has neither codes of this codec nor samples.
    """
    if speech.codes is not None:
        codes = torch.as_tensor(speech.codes, dtype=torch.int64)
        check_codes(codes, codec.config)
        return codes
    if speech.pcm is None or not np.size(speech.pcm):
        raise UserError("speech must hold samples (float32 at 24 kHz) or codes")
    return codec.encode(torch.from_numpy(check_audio(speech.pcm)).to(device)[None])[0]


def history_turn(turn: Turn, encoder: SpeechEncoder) -> HistoryTurn:
    """Convert a turn of the user, the assistant or a tool. `encoder` encodes its speech.

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
            return HistoryTurn(turn.role, speech.text, encoder.encode_speech(speech))
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
        speed: Factor on the style's speaking rate; 1.0 leaves it.

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

    def begin_reply(self, parser: ReplyParser, speak: bool) -> tuple[TranscriptReader, list[Patches]]:
        """Begin to speak a reply, in the style that the turn before it asks for.

        Returns:
            What reads the transcript of the reply, and the patches with which it begins if it is known already.
        """
        if not self._answers_tool:  # otherwise the style is that of the reply with the call
            self._reply_style = self.style
        self.delivery = self._delivery_in(self._reply_style)
        request, self._request = self._request, None
        reader = TranscriptReader(parser, speak, self.last_answer, self._follow if speak else None)
        if request is None or not speak:
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


# replies


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


def collect_reply(events: Iterable[Event]) -> Reply:
    """Combine the events of a reply; its codes are not events and stay empty."""
    pcm, text, transcript = [np.zeros(0, np.float32)], "", None
    reason: Literal["stop", "length", "interrupted"] = "interrupted"
    calls: list[ToolCall] = []
    for event in events:
        match event:
            case AudioDelta(samples):
                pcm.append(samples)
            case TextDelta(more):
                text += more
            case Transcript():
                transcript = event.text
            case ToolCall():
                calls.append(event)
            case ReplyDone():
                reason = event.reason
    return Reply(text.strip(), np.concatenate(pcm), np.zeros((0, 0), np.int64), transcript, reason, tuple(calls))


class ReplyContent(NamedTuple):
    """What a reply says: its text without tool calls, its transcript of the user's speech, and its tool calls."""

    text: str
    transcript: str | None
    calls: tuple[ToolCall, ...]


def reply_content(prompt: Prompt, patches: Patches, user_spoke: bool) -> ReplyContent:
    """Read the patches `[1, P]` of a reply."""
    parsed = parse_reply(prompt, patches, user_spoke)
    parts = list(tools.parse_tool_calls(parsed.text)) if prompt.template.tools else [parsed.text]
    text = "".join(part for part in parts if isinstance(part, str)).strip()
    return ReplyContent(text, parsed.transcript, tuple(part for part in parts if isinstance(part, ToolCall)))


# saved sessions


def to_patches(block: PatchBlock) -> Patches:
    """Return saved patches as the model's, `[1, P]`."""
    return Patches(torch.from_numpy(block.text)[None], torch.from_numpy(block.codes)[None])


class Fingerprints(NamedTuple):
    """Hashes of what gives a saved session its meaning: weights and prompt of the language model, and the codes."""

    lm: str
    codec: str


def fingerprints(codec: Codec, lm: SpeechLM) -> Fingerprints:
    """Return the fingerprints of two models.

    That of a language model is of its configuration, vocabulary and vectors (norms, biases), which are the same in
    every precision. That of a codec is of its configuration and codebooks.
    """
    prompt = [config.to_dict(lm.config), lm.prompt.tokenizer.get_vocab()]
    hashed = hashlib.sha256(json.dumps(prompt, sort_keys=True).encode())
    for name, parameter in lm.named_parameters():
        if parameter.ndim == 1:
            hashed.update(name.encode() + _rounded(parameter).numpy().tobytes())
    return Fingerprints(hashed.hexdigest()[:16], codec_fingerprint(codec))


def codec_fingerprint(codec: Codec) -> str:
    """Return the fingerprint of a codec."""
    hashed = hashlib.sha256(json.dumps(config.to_dict(codec.config), sort_keys=True).encode())
    for book in codec.quantizer.codebooks:
        hashed.update(_rounded(book.embed).numpy().tobytes())  # type: ignore[arg-type]
    return hashed.hexdigest()[:16]


def _rounded(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16)


def session_header(
    id: str, made_by: MadeBy, model: str, owner: str, ours: Fingerprints, lm: SpeechLM, **setup: Any
) -> Header:
    """Return the first line of a session. For the arguments see `Header`; `setup` is what `lm` does not say."""
    sizes = {"frames": lm.config.patch_frames, "codebooks": lm.config.codebooks, "no_speech": lm.config.no_speech}
    setup = {"device": lm.device.type, "dtype": str(lm.dtype).removeprefix("torch."), **setup}
    return Header(id, made_by, model, ours.lm, ours.codec, owner, round(time.time(), 3), **sizes, setup=setup)


def check_same_model(header: Header, made_by: MadeBy, ours: Fingerprints) -> None:
    """Check that these models can resume a saved session.

    Raises:
        UserError: Others made it.
    """
    if header.made_by != made_by:
        maker = "sg2 serve" if header.made_by == "engine" else "sg2 chat"
        raise UserError(f"session {header.id} was made by {maker}; resume it there")
    if (header.model_fingerprint, header.codec_fingerprint) != ours:
        part = "language model" if header.model_fingerprint != ours.lm else "codec"
        raise UserError(f"session {header.id} was made with a different {part} ('{header.model}')")
