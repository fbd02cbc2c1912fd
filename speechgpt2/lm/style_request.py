"""What follows when a user asks for a style, for a model that follows no instructions: `chat` and `engine` share it.

A question is answered without the words that ask for the style. A turn that holds nothing else is answered by the last
answer again, or by a word of consent if the style is meant for later.
"""

from __future__ import annotations

from speechgpt2.fixed_words import CONSENT, in_language_of
from speechgpt2.lm.prompt import Prompt
from speechgpt2.style_requests import StyleRequest, find_request


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
    return in_language_of(asked, CONSENT)
