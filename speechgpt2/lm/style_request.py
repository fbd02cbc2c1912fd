"""What follows when a user asks for a style, for a model that follows no instructions: `chat` and `engine` share it.

A question is answered without the words that ask for the style. A turn that holds nothing else is answered by the last
answer again, or by a word of consent if the style is meant for later.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from speechgpt2.lm.prompt import Prompt
from speechgpt2.lm.reply import ReplyParser
from speechgpt2.style_requests import StyleRequest, find_request
from speechgpt2.types import Patches

CONSENT = {"en": "All right.", "zh": "好的。"}


def request_in(prompt: Prompt, text: str | None) -> StyleRequest | None:
    """Return the request in a turn of the user, if the model's speech has to be changed for it."""
    return None if text is None or prompt.template.follows_instructions else find_request(text)


def answer_to(request: StyleRequest, asked: str, last_answer: str) -> str | None:
    """Return the answer to a turn that is only a request; None if the model has a question to answer.

    Args:
        request: The request.
        asked: The turn.
        last_answer: The text of the answer before it; empty if there was none.
    """
    if request.rest:
        return None
    if last_answer and not request.lasting:
        return last_answer
    return CONSENT["zh" if re.search("[\u4e00-\u9fff]", asked) else "en"]


class TranscriptReader:
    """Reads the request in the transcript that a reply begins with, as soon as the model has written it.

    Args:
        parser: The parser of the reply.
        last_answer: The text of the answer before it; empty if there was none.
        follow: Called with the request.
    """

    def __init__(self, parser: ReplyParser, last_answer: str, follow: Callable[[StyleRequest], None]):
        self._parser, self._last_answer, self._follow = parser, last_answer, follow

    def finish(self) -> Patches | None:
        """End the transcript.

        Returns:
            Patches `[1, P]` that replace the reply so far, if it holds a request: the question that is left, or what is
            said again, up to the start of its speech.
        """
        parser, prompt = self._parser, self._parser.prompt
        transcript = parser.end_transcript()
        request = request_in(prompt, transcript)
        if request is None:
            return None
        self._follow(request)
        if (answer := answer_to(request, transcript, self._last_answer)) is None:
            parser.transcript = request.rest
            return prompt.transcript(request.rest)
        parser.write(answer)
        return prompt.tts_prefix(answer, transcript)
