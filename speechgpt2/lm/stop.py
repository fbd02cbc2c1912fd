"""The stop rule of a reply: where it ends, and why. `chat` and `engine` ask it after every patch.

A reply ends
- at the token `eos` ("stop"). A reply that must have speech but has none is spoken first: small models now and then
  end one without;
- at speech that was not asked for ("stop");
- at its maximal number of patches, or where the context is nearly full ("length").
"""

from __future__ import annotations

from typing import Literal

from speechgpt2.lm.reply import ReplyParser
from speechgpt2.types import Patches

CLOSING_ROOM = 16  # patches of a context that are kept for ending a reply properly
StopReason = Literal["stop", "length"]


class StopRule:
    """Follows the patches of one reply.

    Args:
        parser: The parser of the reply. It knows the text that a reply without speech still has to speak.
        max_patches: Where the reply is cut off.
        speak: Whether the reply is to have speech.
        in_speech: Whether the reply begins within speech, as text that is read aloud does.

    Attributes:
        reason: Why the reply has ended; None while it goes on.
        patches: Patches so far.
        speech_depth: Speech segments that were begun less those that were ended.
    """

    def __init__(self, parser: ReplyParser, max_patches: int, speak: bool, in_speech: bool = False):
        self.parser, self.max_patches, self.speak = parser, max_patches, speak
        self.patches, self.speech_depth = 0, int(in_speech)
        self.reason: StopReason | None = None if max_patches > 0 else "length"
        self._has_speech = False

    def advance(self, token: int, speaking: bool, room: int | None = None) -> Patches | None:
        """Follow the next patch, before it is parsed.

        Args:
            token: The patch's text token.
            speaking: Whether it holds speech.
            room: Patches that fit into the context after it; None if the context grows.

        Returns:
            None, or, if the reply would end here without its speech: patches `[1, P]` that replace the whole reply so
            far and end where its speech begins. The patch itself is then dropped.
        """
        ids = self.parser.prompt.special_ids
        self.patches += 1
        full, ends = self.patches >= self.max_patches, ids.ends_reply(token)
        if ends and self.speak and not self._has_speech and not full:
            continuation = self.parser.speech_continuation_prompt()
            if continuation is not None:
                self.speech_depth = 1
                return continuation
        self._has_speech |= speaking
        self.speech_depth += (token == ids.speech_start) - (token == ids.speech_end)
        if ends or (self.speech_depth and not self.speak):
            self.reason = "stop"
        elif full or (room is not None and room <= CLOSING_ROOM):
            self.reason = "length"
        return None
