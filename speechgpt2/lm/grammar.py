"""Constrained decoding: the text of a reply follows a grammar, so that every tool call and every JSON text is valid.

    constraint = prompt.grammars.constraint(tools=[weather], required=True)       # of one reply
    lm.sample(hidden, state, sampling, allowed=constraint.allowed())              # a bit for each token
    constraint.accept(token)                                                      # False: the token does not fit

Grammars are compiled by llguidance (https://github.com/guidance-ai/llguidance) and kept. Free text costs nothing: its
tokens are only followed, until one begins a call. A token that goes astray there, as one of several drafted tokens can,
is refused, and its place is sampled again with a mask.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from speechgpt2.errors import UserError
from speechgpt2.extras import require
from speechgpt2.lm.tools import BEGIN, END
from speechgpt2.types import Tool

if TYPE_CHECKING:
    from speechgpt2.lm.prompt import Prompt

# As `json.dumps` writes it, which is what models of the hermes format were trained with.
JSON_STYLE = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
MAX_GRAMMARS = 64  # that are kept
ANYTHING = {"type": "object"}

log = logging.getLogger("sg2.lm")


def installed() -> bool:
    """Whether llguidance is installed (`pip install 'speechgpt2[grammar]'`)."""
    return importlib.util.find_spec("llguidance") is not None


class Grammars:
    """Compiles grammars for one model.

    Args:
        prompt: The model's prompt, with its tokenizer.
        vocab: The number of text tokens of the model.
    """

    def __init__(self, prompt: Prompt, vocab: int):
        self.prompt, self.vocab = prompt, vocab
        self._compiled = lru_cache(MAX_GRAMMARS)(self._compile)
        self._schemas = lru_cache(MAX_GRAMMARS)(self._usable_schema)

    @cached_property
    def special_tokens(self) -> np.ndarray:
        """The special tokens as bits, `[W]` int32."""
        ids = np.array([token for token in self.prompt.special_ids if token >= 0])
        bits = np.zeros(-(-self.vocab // 32) * 32, bool)
        bits[ids] = True
        return np.packbits(bits, bitorder="little").view(np.int32)

    def constraint(
        self,
        tools: Sequence[Tool] = (),
        required: bool | str = False,
        schema: dict[str, Any] | None = None,
        after_transcript: bool = False,
        prefix: Sequence[int] = (),
    ) -> TextConstraint | None:
        """Return the constraint of one reply.

        Args:
            tools: The tools that it may call.
            required: Whether it must call one; a name requires that tool.
            schema: A JSON schema that it follows, unless it calls a tool.
            after_transcript: Whether the reply begins with a transcript, which is free.
            prefix: Tokens with which the reply begins, as far as they belong to the grammar.

        Returns:
            The constraint; None if nothing is constrained, or llguidance is not installed.

        Raises:
            UserError: The schema is not a JSON schema, or has parts that cannot be enforced.
            MissingDependency: There is a schema, and llguidance is not installed.
        """
        named = [tool for tool in tools if required in (True, False, tool.name)]
        if schema is None and not (named and installed()):
            return None
        schemas = [(tool.name, self._schemas(json.dumps(tool.parameters))) for tool in named]
        matcher = self._compiled(_grammar(schemas, bool(required), schema, self.prompt.template.turn_end))
        if matcher.is_error():
            raise UserError(f"the JSON schema cannot be followed: {_reason(matcher)}")
        free = not required and schema is None
        return TextConstraint(self, matcher.deep_copy(), free, after_transcript, prefix)

    @cached_property
    def _tokenizer(self) -> Any:
        library = require("llguidance", "grammar")
        return library.LLTokenizer(
            self.prompt.tokenizer.to_str(), n_vocab=self.vocab, eos_token=self.prompt.special_ids.eos
        )

    def _compile(self, grammar: str) -> Any:
        return require("llguidance", "grammar").LLMatcher(self._tokenizer, grammar, log_level=0)

    def _usable_schema(self, parameters: str) -> str:
        """The schema of a tool's arguments. Keywords that cannot be enforced are left to the check of the arguments."""
        schema = json.loads(parameters)
        if schema.get("type", "object") == "object":
            lenient = _json({**ANYTHING, **schema}, lenient=True)
            if not (matcher := self._compile(f"start: {lenient}")).is_error():
                return lenient
            log.warning("a tool's arguments are only held to be JSON: %s", _reason(matcher))
        return _json(ANYTHING)


class TextConstraint:
    """Follows the text of one reply.

    Args:
        grammars: The model's grammars.
        matcher: llguidance's state, of this reply alone.
        free: Whether text outside of calls is free.
        after_transcript: Whether a transcript comes first.
        prefix: Tokens that the reply begins with.
    """

    def __init__(self, grammars: Grammars, matcher: Any, free: bool, after_transcript: bool, prefix: Sequence[int]):
        self._grammars, self._matcher, self._free = grammars, matcher, free
        self._waits, self._ended, self._strict = after_transcript, False, not free
        for token in prefix:
            matcher.consume_token(token)

    def allowed(self) -> np.ndarray | None:
        """Return the tokens that may come next as bits, `[W]` int32 (token n is bit n % 32 of word n // 32).

        None if all may.
        """
        if self._waits or self._ended or not (self._strict or self._in_call):
            return None
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.int32)
        return mask if self._in_call or not self._free else mask | self._grammars.special_tokens

    def accept(self, token: int) -> bool:
        """Take the next token.

        Returns:
            Whether it fits. If not, it has to be sampled again.
        """
        ids = self._grammars.prompt.special_ids
        if self._waits:
            self._waits = token != ids.transcript_end
            return True
        if self._ended or token in ids:
            self._ended = self._ended or (token == ids.speech_start and self._words_are_known)
            return self._ended or self._matcher.is_accepting() or self._refuse()
        if not self._matcher.validate_tokens([token]):
            return self._refuse()
        self._strict = not self._free
        return self._matcher.consume_token(token)

    @property
    def _in_call(self) -> bool:
        return not self._matcher.is_accepting()

    @property
    def _words_are_known(self) -> bool:
        """Whether text in speech repeats what was written before, as with chain of modality."""
        return self._grammars.prompt.template.chain_of_modality

    def _refuse(self) -> bool:
        self._strict = True
        return False


def _grammar(tools: Sequence[tuple[str, str]], required: bool, schema: dict[str, Any] | None, turn_end: str) -> str:
    """Return the grammar of a reply in llguidance's variant of Lark, whose last text is the turn's end.

    Args:
        tools: Names and schemas, as grammars, of the tools.
        required: Whether there must be a call.
        schema: The schema of a reply that calls nothing.
        turn_end: The text that ends a turn.
    """
    rules, end = [], f" {_literal(turn_end)}" if turn_end else ""
    if tools:
        rules.append("body: " + " | ".join(f"body_{n}" for n in range(len(tools))))
        rules.append(f"rest: {_literal(chr(10))} body {_literal(chr(10) + END)}")
        rules.append(f"calls: {_literal(BEGIN)} rest ({_literal(chr(10) + BEGIN)} rest)*")
    for number, (name, arguments) in enumerate(tools):
        begin = f'{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": '
        rules += [f"body_{number}: {_literal(begin)} args_{number} {_literal('}')}", f"args_{number}: {arguments}"]
    if schema is not None:
        rules.append(f"answer: {_json(schema)}")
        start = f"(calls | answer){end}" if tools and not required else f"answer{end}"
    if required:
        start = f"calls{end}"
    elif schema is None:
        start = "call* TEXT"
        rules += ["call: begin rest", f"begin[lazy]: TEXT {_literal(BEGIN)}", r"TEXT: /(.|\n)*/"]
    return "\n".join(["%llguidance {}", f"start: {start}", *rules])


def _json(schema: dict[str, Any], lenient: bool = False) -> str:
    return f"%json {json.dumps({**schema, 'x-guidance': {**JSON_STYLE, 'lenient': lenient}})}"


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _reason(matcher: Any) -> str:
    return " ".join(matcher.get_error().split("\n")[0].split())[:200]
