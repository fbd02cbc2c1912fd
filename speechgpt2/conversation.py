"""The turns of a conversation as text or codes: what `chat` (one conversation, synchronous) and `engine` share.

They also share the rules of a reply: `lm.reply` (patches to events) and `lm.stop` (the stop rule).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from speechgpt2.audio import check_audio
from speechgpt2.codec.config import CodecConfig
from speechgpt2.codec.model import Codec, check_codes
from speechgpt2.errors import UserError
from speechgpt2.lm import tools
from speechgpt2.lm.model import SpeechLM
from speechgpt2.types import Role, Speech, Text, Turn


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
