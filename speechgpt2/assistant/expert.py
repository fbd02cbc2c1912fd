"""Delegation: a tool that sends a question to a larger text model with an OpenAI-compatible API.

    expert = Expert("http://localhost:8000/v1", model="qwen2.5-7b")
    toolbox = Toolbox([expert.tool()])

So a small speech model gives the answers of a large one in its own voice. The system prompt asks the expert for an
answer that can be spoken; Markdown that it sends nevertheless is removed (`plain_speech`).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

from speechgpt2.assistant.functions import PythonTool, tool
from speechgpt2.assistant.http_json import check_address, exchange

API_KEY = "SG2_EXPERT_API_KEY"  # environment variable; a key on the command line could be read by other users
INSTRUCTIONS = (
    "You help a voice assistant. Answer in the language of the question, in at most three short sentences as one would "
    "speak them: no lists, no headings, no links, no emoji. If you do not know, say so."
)


@dataclass(frozen=True)
class Expert:
    """A text model that answers questions.

    Attributes:
        base_url: The address, up to and including ``/v1``.
        model: The model's name at this address.
        api_key: Sent as a bearer token; None reads the environment variable `API_KEY`.
        timeout: Limit of the time of an answer, in seconds.
        max_tokens: The longest answer.
        instructions: The system prompt.
    """

    base_url: str
    model: str
    api_key: str | None = None
    timeout: float = 30.0
    max_tokens: int = 200
    instructions: str = INSTRUCTIONS

    def __post_init__(self) -> None:
        check_address(self.base_url, "an expert")

    def tool(self) -> PythonTool:
        """Return the tool `ask_expert`. A live talk goes on while the expert thinks."""

        @tool(timeout=self.timeout + 1, background=True, on_interrupt="keep")
        def ask_expert(question: str) -> str:
            """Ask an expert what you do not know yourself: facts, explanations, advice, calculations.

            Args:
                question: The whole question, understandable without the conversation, in the user's language.
            """
            return self.ask(question)

        return PythonTool.from_function(ask_expert)

    def ask(self, question: str) -> str:
        """Return the answer as plain sentences.

        Raises:
            RuntimeError: The address cannot be reached, refuses, is too slow, or sends no answer.
        """
        messages = [{"role": "system", "content": self.instructions}, {"role": "user", "content": question}]
        body = {"model": self.model, "messages": messages, "max_tokens": self.max_tokens}
        key = self.api_key or os.environ.get(API_KEY)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        url = f"{self.base_url.rstrip('/')}/chat/completions"
        return plain_speech(_content(exchange(url, "the expert", self.timeout, body, headers)))


def _content(reply: Any) -> str:
    try:
        text = reply["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise RuntimeError("the expert sent no answer in the form of the OpenAI API") from None
    if not isinstance(text, str) or not text.strip():
        raise RuntimeError("the expert sent an empty answer")
    return text


def plain_speech(text: str) -> str:
    """Remove what cannot be spoken: Markdown's marks, addresses of links, code fences, thoughts in <think> tags."""
    text = re.sub(r"<think>.*?(</think>|$)", " ", text, flags=re.DOTALL)
    text = re.sub(r"```\w*", " ", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)\s]*\)", r"\1", text)
    text = re.sub(r"https?://\S+", " ", text)
    text = re.sub(r"^\s*(#+|[-*+•]|>|\d+[.)])\s+", "", text, flags=re.MULTILINE)
    text = re.sub(r"(\*\*|__|`|(?<!\w)[*_]|[*_](?!\w))", "", text)
    return " ".join(text.split())
