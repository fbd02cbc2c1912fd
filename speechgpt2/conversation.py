"""What one conversation is made of: the logic that `chat` and `engine` share.

Both turn a `Turn` into text or codes, both follow the text row of a reply, and both go on where a small model would
end a spoken reply without having spoken. `chat` does so synchronously for one conversation, `engine` for many.
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
from speechgpt2.lm.prompt import Prompt
from speechgpt2.lm.reply import ReplyEvent, ReplyParser
from speechgpt2.types import Patches, Role, Speech, Text, Turn


class HistoryTurn(NamedTuple):
    """A turn as the model's prompt takes it: `text` that was written or said, `codes [T, K]` if it was spoken."""

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
    """The codes `[T, K]` (int64) of a speech segment, encoded by `encode(pcm [N])` if it has none.

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
    """A turn of the user, the assistant or a tool, its speech encoded by `codes_of`.

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


class ReplyState:
    """The text row of a reply under way: counts its patches, parses them, knows when speech is missing.

    Args:
        prompt: The model's prompt layout.
        parser: Turns the text row into events.
        max_patches: Where the reply is cut off.
        speak: Whether the reply must have speech. Small models now and then end one without.
    """

    def __init__(self, prompt: Prompt, parser: ReplyParser, max_patches: int, speak: bool):
        self.prompt, self.parser, self.max_patches, self.speak = prompt, parser, max_patches, speak
        self.patches = self.speech_patches = 0

    @property
    def full(self) -> bool:
        """Whether the reply has reached its maximal length."""
        return self.patches >= self.max_patches

    def count(self, token: int) -> Patches | None:
        """Count the next patch, whose text token is `token`.

        Returns:
            None, or, if the reply would end here without its speech: patches `[1, P]` that take the place of the
            whole reply so far and end where its speech begins. The patch itself is then dropped.
        """
        self.patches += 1
        ends_mute = token == self.prompt.special_ids.eos and self.speak and not self.speech_patches
        return self.parser.speech_continuation_prompt() if ends_mute and not self.full else None

    def read(self, token: int, speaking: bool) -> list[ReplyEvent]:
        """Parse a patch that was counted.

        Args:
            token: Its text token.
            speaking: Whether it holds speech.

        Returns:
            The events that it completes.
        """
        self.speech_patches += speaking
        return self.parser.read(token, speaking)
