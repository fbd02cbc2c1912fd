"""Styles: how the assistant speaks. The named ones are in `assets/styles.yaml`.

    style = parse_style("slower, whisper")                 # the styles of both names together
    style.over(parse_style("faster"))                      # on top of another one

A model that follows instructions gets a style as words; for any other one, `dsp.delivery` changes its speech.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from speechgpt2 import config
from speechgpt2.errors import UserError
from speechgpt2.languages import language_of

TABLE = Path(__file__).parent / "assets" / "styles.yaml"
SLOWEST, FASTEST = 0.25, 4.0  # rates, those of OpenAI's `speed`
STEPS_SLOWEST, STEPS_FASTEST = 0.5, 2.0  # rates that repeated requests reach
MAX_PITCH = 12.0  # semitones
MAX_LEVEL = 12.0  # dB


@dataclass(frozen=True)
class Style:
    """A way to speak.

    Attributes:
        name: The names of the styles that it consists of, for people and logs.
        rate: Factor on the model's own speaking rate; 1.0 leaves it.
        pitch: Shift of the voice in semitones.
        level: Change of the level in dB.
        whisper: Whether it is whispered.
        instruction: What a model that follows instructions is asked to do, in English and in Mandarin.

    Raises:
        UserError: A value is out of range.
    """

    name: str = "normal"
    rate: float = 1.0
    pitch: float = 0.0
    level: float = 0.0
    whisper: bool = False
    instruction: tuple[str, str] = ("", "")

    def __post_init__(self) -> None:
        if not SLOWEST <= self.rate <= FASTEST:
            raise UserError(f"a rate of speech must be {SLOWEST:g} to {FASTEST:g}, not {self.rate:g}")
        if not abs(self.pitch) <= MAX_PITCH or not abs(self.level) <= MAX_LEVEL:
            raise UserError(f"a style moves pitch by up to {MAX_PITCH:g} semitones and level by up to {MAX_LEVEL:g} dB")

    @property
    def changes_audio(self) -> bool:
        """Whether speech has to be changed."""
        return (self.rate, self.pitch, self.level, self.whisper) != (1.0, 0.0, 0.0, False)

    def faster(self, factor: float) -> Style:
        """Return the style at `factor` times its rate, within the limits."""
        return self if factor == 1.0 else replace(self, rate=_within(self.rate * factor, SLOWEST, FASTEST))

    def over(self, other: Style) -> Style:
        """Return both styles together: rates are multiplied, shifts are added, within the limits."""
        if other == NORMAL or self == NORMAL:
            return self if other == NORMAL else other
        return Style(
            f"{other.name}, {self.name}",
            _within(self.rate * other.rate, STEPS_SLOWEST, STEPS_FASTEST),
            _within(self.pitch + other.pitch, -MAX_PITCH, MAX_PITCH),
            _within(self.level + other.level, -MAX_LEVEL, MAX_LEVEL),
            self.whisper or other.whisper,
            _joined(other.instruction, self.instruction),
        )

    def instruction_for(self, text: str) -> str:
        """Return the instruction in the language of a text."""
        return self.instruction[1 if language_of(text) == "zh" else 0]


def delivered(style: Style, speed: float, follows_instructions: bool) -> Style:
    """Return the style in which a model's speech has to be delivered.

    Args:
        style: The style that is wanted.
        speed: Factor on the style's speaking rate; 1.0 leaves it.
        follows_instructions: Whether the model has been asked to speak in this style, so that only `speed` is left.

    Raises:
        UserError: The speed is out of range. Where it is not, the rate stays within the limits.
    """
    if not SLOWEST <= speed <= FASTEST:
        raise UserError(f"a speed must be {SLOWEST:g} to {FASTEST:g}, not {speed:g}")
    return (NORMAL if follows_instructions else style).faster(speed)


def _within(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def _joined(first: tuple[str, str], second: tuple[str, str]) -> tuple[str, str]:
    """Join two instructions; one that is repeated is given once."""
    if first == second:
        return first
    return f"{first[0]} {second[0]}".strip(), f"{first[1]}{second[1]}"


NORMAL = Style()


@dataclass(frozen=True)
class StyleEntry:
    """An entry of the table. `names`, `phrases` and `compares` are described there."""

    names: tuple[str, ...]
    rate: float = 1.0
    pitch: float = 0.0
    level: float = 0.0
    whisper: bool = False
    compares: bool = False
    instruction: dict[str, str] = field(default_factory=dict)
    phrases: dict[str, tuple[str, ...]] = field(default_factory=dict)


@cache
def table() -> dict[str, StyleEntry]:
    """Return the named styles."""
    entries = config.read(TABLE)
    return {name: config.from_dict(StyleEntry, entry, f"{TABLE.name}: {name}") for name, entry in entries.items()}


@cache
def named_style(name: str) -> Style:
    """Return a style of the table by one of its names.

    Raises:
        UserError: There is none of this name.
    """
    wanted = name.strip().lower()
    for key, entry in table().items():
        if wanted == key or wanted in entry.names:
            instruction = entry.instruction.get("en", ""), entry.instruction.get("zh", "")
            if key == NORMAL.name:
                return NORMAL
            return Style(key, entry.rate, entry.pitch, entry.level, entry.whisper, instruction)
    raise UserError(f"no style {name.strip()!r}: there are {', '.join(table())}, and several with commas between them")


def parse_style(names: str) -> Style:
    """Return the style of one name or of several, with commas between them.

    Raises:
        UserError: There is no such style.
    """
    style = NORMAL
    for name in re.split("[,，、]", names):
        style = named_style(name).over(style)
    return style
