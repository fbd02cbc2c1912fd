"""The stop rule: where a reply ends, and why. `chat` and `engine` apply it to every patch.

A reply ends
- at the token `eos` ("stop"). If a spoken reply has no speech yet, which happens with small models, it is spoken first;
- at speech, if it is a written reply ("stop");
- at its maximal number of patches, or if the context is nearly full ("length").
"""

from __future__ import annotations

from typing import Literal

from speechgpt2.lm.reply import ReplyParser
from speechgpt2.lm.transcript_reader import TranscriptReader
from speechgpt2.types import Patches

CLOSING_ROOM = 16  # patches of a context that are reserved for the end of a reply
StopReason = Literal["stop", "length"]


class StopRule:
    """The stop rule of one reply.

    Args:
        parser: The parser of the reply, which has its text so far.
        max_patches: Limit of the reply.
        speak: Whether the reply is spoken.
        in_speech: Whether the reply begins within speech, as a text that is read aloud does.
        transcript: Reads the transcript that the reply begins with.

    Attributes:
        reason: Why the reply has ended; None before its end.
        patches: Patches so far.
        speech_depth: Started speech segments minus ended ones.
    """

    def __init__(
        self,
        parser: ReplyParser,
        max_patches: int,
        speak: bool,
        in_speech: bool = False,
        transcript: TranscriptReader | None = None,
    ):
        self.parser, self.max_patches, self.speak = parser, max_patches, speak
        self.patches, self.speech_depth = 0, int(in_speech)
        self._transcript = transcript
        self.reason: StopReason | None = None if max_patches > 0 else "length"
        self._has_speech = False

    def advance(self, token: int, speaking: bool, room: int | None = None, log_prob: float = 0.0) -> Patches | None:
        """Apply the rule to the next patch, before it is parsed.

        Args:
            token: The patch's text token.
            speaking: Whether the patch holds speech.
            room: Patches that fit into the context after this one; None if the context grows.
            log_prob: Log-probability of the text token.

        Returns:
            None to keep the patch. Otherwise patches `[1, P]` that replace the reply so far, and the patch is dropped.
            This happens when a spoken reply would end without speech (the replacement ends where its speech starts),
            and when the transcript is not answered as it is (`TranscriptReader`).
        """
        ids = self.parser.prompt.special_ids
        self.patches += 1
        if self._transcript is not None and (prefix := self._transcript.read(token, log_prob)) is not None:
            self.speech_depth = int(prefix.text[0, -1] == ids.speech_start)
            return prefix
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
