"""Scripts from a language model with an OpenAI-compatible API, checked like any other script.

The request has only a language, a topic and the form of the answer.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from speechgpt2.data.conversations.script import STYLES, Line, Script
from speechgpt2.errors import UserError

LANGUAGES = {"en": "English", "zh": "Mandarin Chinese, written in simplified characters"}
MAX_LINES = 40
MAX_BYTES = 1 << 20  # of an answer

_INSTRUCTION = """Write a short spoken conversation in {language} about: {topic}.
Answer with one JSON object and nothing else:
{{"roles": ["…", "…"], "lines": [{{"role": "…", "text": "…", "kind": "turn", "style": ""}}]}}.
kind is "turn", "backchannel" (a mm-hm said into the other's turn before it) or "interruption" (it cuts the other's
turn before it short). style is "" or, where a speaker is asked to speak so, one of: {styles}.
Write numbers as words. Use no abbreviations, no digits, no brackets and no markup in text."""


class InvalidScript(ValueError):
    """The model's answer is not a valid script."""


@dataclass(frozen=True)
class LlmConfig:
    """The model: `url` without /chat/completions; `key` names the environment variable of the API key."""

    url: str
    model: str
    topics: tuple[str, ...]
    key: str = "OPENAI_API_KEY"
    temperature: float = 1.0
    timeout: float = 120.0


def write_script(config: LlmConfig, topic: str, lang: str, seed: int) -> Script:
    """Ask for a script about `topic`.

    Raises:
        InvalidScript: the answer is not a valid script.
        UserError: the endpoint cannot be used.
    """
    instruction = _INSTRUCTION.format(language=LANGUAGES[lang], topic=topic, styles=", ".join(STYLES))
    body = {
        "model": config.model, "temperature": config.temperature, "seed": seed,
        "messages": [{"role": "user", "content": instruction}],
    }  # fmt: skip
    answer = _post(config, body)
    try:
        content = answer["choices"][0]["message"]["content"]
        return _script(json.loads(_json_object(content)), f"llm: {topic}", lang)
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise InvalidScript(f"the model's answer is not a script ({type(error).__name__}: {error})") from None


def _post(config: LlmConfig, body: dict[str, Any]) -> dict[str, Any]:
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get(config.key):
        headers["Authorization"] = f"Bearer {key}"
    url = config.url.rstrip("/") + "/chat/completions"
    if not url.startswith(("http://", "https://")):
        raise UserError(f"{config.url}: the endpoint of a language model must begin with http:// or https://")
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=config.timeout) as response:
            return json.loads(response.read(MAX_BYTES))
    except urllib.error.HTTPError as error:
        raise UserError(f"{url}: the server responds with {error.code} {error.reason}") from None
    except OSError as error:
        raise UserError(f"{url}: cannot be reached ({error})") from None
    except ValueError:
        raise InvalidScript("the server's answer is not JSON") from None


def _json_object(content: str) -> str:
    """Return the JSON object in the answer; many models wrap it in a code block or other text."""
    return content[content.index("{") : content.rindex("}") + 1] if "{" in content and "}" in content else content


def _script(values: dict[str, Any], name: str, lang: str) -> Script:
    lines = tuple(
        Line(str(line["role"]), str(line["text"]).strip(), line.get("kind") or "turn", str(line.get("style") or ""))
        for line in values["lines"][:MAX_LINES]
    )
    wrong = [line.kind for line in lines if line.kind not in ("turn", "backchannel", "interruption")]
    if wrong:
        raise UserError(f"no kind {wrong[0]!r}")
    first, second = values["roles"]
    return Script(name, lang, (str(first), str(second)), lines)
