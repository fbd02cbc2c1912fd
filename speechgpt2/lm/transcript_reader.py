"""Reads the transcript that a reply begins with, and may replace the answer to it. `chat` and `engine` share it.

A model with chain of modality writes what it has understood before it answers. If it was not sure of the words, the
answer is that it did not understand. If the words ask for a style, `lm.style_request` tells what is said.
"""

from __future__ import annotations

from collections.abc import Callable

from speechgpt2.fixed_words import NOT_UNDERSTOOD, in_language_of
from speechgpt2.lm.prompt import Prompt
from speechgpt2.lm.reply import ReplyParser
from speechgpt2.lm.segments import concat
from speechgpt2.lm.style_request import answer_to, request_in
from speechgpt2.style_requests import StyleRequest
from speechgpt2.types import Patches

LEAST_CERTAIN = 3  # tokens of a transcript that its confidence is the mean of


class TranscriptReader:
    """Reads the transcript of one reply.

    Args:
        parser: The parser of the reply.
        speak: Whether the reply is spoken.
        last_answer: The text of the answer before it; empty if there was none.
        follow: Called with the style that the transcript asks for.
    """

    def __init__(
        self,
        parser: ReplyParser,
        speak: bool,
        last_answer: str = "",
        follow: Callable[[StyleRequest], None] | None = None,
    ):
        self._parser, self._speak, self._last_answer, self._follow = parser, speak, last_answer, follow
        self._log_probs: list[float] = []

    def read(self, token: int, log_prob: float) -> Patches | None:
        """Read the next token of the reply, before it is parsed.

        Args:
            token: The text token.
            log_prob: Its log-probability.

        Returns:
            Patches `[1, P]` that replace the reply so far, if the model does not answer the transcript as it is. They
            end where the model goes on: at the start of the speech, or with the text of a written reply.
        """
        parser, prompt = self._parser, self._parser.prompt
        if not parser.transcribing:
            return None
        self._log_probs.append(log_prob)
        if token != prompt.special_ids.transcript_end:
            return None
        transcript, limit = parser.end_transcript(), prompt.template.min_confidence
        if limit is not None and transcript.strip() and confidence(self._log_probs) < limit:
            return self._answer(in_language_of(transcript, NOT_UNDERSTOOD), transcript)
        request = request_in(prompt, transcript)
        if request is None or self._follow is None:
            return None
        self._follow(request)
        if (answer := answer_to(request, transcript, self._last_answer)) is None:
            parser.transcript = request.rest
            return prompt.transcript(request.rest)
        return self._answer(answer, transcript)

    def _answer(self, text: str, transcript: str) -> Patches:
        prompt: Prompt = self._parser.prompt
        self._parser.write(text)
        if self._speak:
            return prompt.tts_prefix(text, transcript)
        return concat(prompt.transcript(transcript), prompt.text_patches(prompt.encode(text)))


def confidence(log_probs: list[float]) -> float:
    """Return the mean log-probability of the least certain tokens: one wrong word makes a transcript wrong."""
    least = sorted(log_probs)[:LEAST_CERTAIN]
    return sum(least) / len(least)
