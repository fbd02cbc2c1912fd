"""Scenes with slots, expanded at random: scripts without a language model.

A scene is text, a line for each contribution:

    waiter: {greeting} What would you like?
    guest: I'd like {=dish}, please.                 {=dish} is drawn once and stays the same in the scene
    waiter~ {yes}                                    ~ a backchannel, spoken into the line above
    guest! Sorry, {=dish} without onions.            ! an interruption of the line above
    waiter[slow]: No onions.                         [style], one of script.STYLES; may be a slot, too
    guest?: Thank you.                               ? left out half of the time, with the ? lines that follow
    waiter{order dish={=dish}}: One moment.          a tool call of that name with its arguments

A slot without a rule is an error when the scene is read, not only when it is drawn.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from speechgpt2.data.conversations.script import Kind, Line, Script
from speechgpt2.errors import UserError

DEEPEST = 12  # nested rules; a deeper nesting is a cycle
_SLOT = re.compile(r"\{(=?)([a-z_]+)\}")
_LINE = re.compile(
    r"(?P<role>\w+)(?:\[(?P<style>[^\]]+)\])?"
    r"(?:\{(?P<tool>\w+)(?P<arguments>(?: \w+=[^ }]+\}?)*)\})?"
    r"(?P<maybe>\?)?(?P<kind>[:~!])\s*(?P<text>.+)"
)
_KINDS: dict[str, Kind] = {":": "turn", "~": "backchannel", "!": "interruption"}


@dataclass(frozen=True)
class Pattern:
    """A line of a scene with open slots."""

    role: str
    text: str
    kind: Kind
    style: str
    maybe: bool
    tool: str
    arguments: tuple[tuple[str, str], ...]


class Scene:
    """A scene read from text.

    Args:
        name: the scene's name.
        lang: its language, "en" or "zh".
        text: its lines (see the module).
        rules: the texts that may replace a slot, by the slot's name; they may have slots, too.

    Raises:
        UserError: a line has another form, a slot has no rule, or a rule contains itself.
    """

    def __init__(self, name: str, lang: str, text: str, rules: Mapping[str, Sequence[str]]):
        self.name, self.lang, self._rules = name, lang, rules
        self.patterns = tuple(_pattern(name, line.strip()) for line in text.strip().splitlines())
        self.roles = tuple(dict.fromkeys(pattern.role for pattern in self.patterns))
        if len(self.roles) != 2:
            raise UserError(f"scene {name}: needs two roles, has {len(self.roles)}")
        for pattern in self.patterns:
            for text in (pattern.text, pattern.style, *(value for _, value in pattern.arguments)):
                self._check(text, ())

    def draw(self, rng: random.Random) -> Script:
        """Draw a script: the same for the same state of `rng`."""
        fixed: dict[str, str] = {}  # values of {=slots}
        lines: list[Line] = []
        previous: Pattern | None = None
        left_out = False
        for pattern in self.patterns:
            if not pattern.maybe:
                left_out = False
            elif previous is None or not previous.maybe:  # optional lines that follow it are left out with it
                left_out = rng.random() < 0.5
            if not left_out:
                lines.append(self._line(pattern, rng, fixed))
            previous = pattern
        return Script(self.name, self.lang, (self.roles[0], self.roles[1]), tuple(lines))

    def _line(self, pattern: Pattern, rng: random.Random, fixed: dict[str, str]) -> Line:
        text = self._expand(pattern.text, rng, fixed)
        tool = [("name", pattern.tool)] if pattern.tool else []
        tool += [(key, self._expand(value, rng, fixed)) for key, value in pattern.arguments]
        style = self._expand(pattern.style, rng, fixed)
        return Line(pattern.role, text[0].upper() + text[1:], pattern.kind, style, (), tuple(tool))

    def _expand(self, text: str, rng: random.Random, fixed: dict[str, str]) -> str:
        def fill(match: re.Match[str]) -> str:
            keep, symbol = match.groups()
            if keep and symbol in fixed:
                return fixed[symbol]
            value = self._expand(rng.choice(self._rules[symbol]), rng, fixed)
            if keep:
                fixed[symbol] = value
            return value

        return _SLOT.sub(fill, text)

    def _check(self, text: str, path: tuple[str, ...]) -> None:
        for _, symbol in _SLOT.findall(text):
            if symbol not in self._rules:
                raise UserError(f"scene {self.name}: no rule for the slot {{{symbol}}}")
            if symbol in path or len(path) > DEEPEST:
                raise UserError(f"scene {self.name}: the rule {symbol} goes in circles")
            for option in self._rules[symbol]:
                self._check(option, (*path, symbol))


def _pattern(scene: str, line: str) -> Pattern:
    match = _LINE.fullmatch(line)
    if match is None:
        raise UserError(f"scene {scene}: {line!r} is not a line; write 'role: text'")
    pairs = re.findall(r"(\w+)=(\S+?)(?= |$)", match["arguments"] or "")
    return Pattern(
        match["role"], match["text"], _KINDS[match["kind"]], match["style"] or "", bool(match["maybe"]),
        match["tool"] or "", tuple(pairs),
    )  # fmt: skip
