"""A script: the lines of a conversation with their speakers and styles. Writers make it, the synthesis reads it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from speechgpt2.errors import UserError

Kind = Literal["turn", "backchannel", "interruption"]
MarkKind = Literal["filler", "repetition", "repair"]
LONGEST = 400  # characters of a line


@dataclass(frozen=True)
class SpeakingStyle:
    """How a line is spoken, relative to the speaker's normal style.

    Attributes:
        rate: factor of the speed.
        pitch: semitones higher.
        range: factor of the pitch range.
        loudness: dB louder.
        whisper: without voice.
    """

    rate: float = 1.0
    pitch: float = 0.0
    range: float = 1.0
    loudness: float = 0.0
    whisper: bool = False


NEUTRAL_STYLE = SpeakingStyle()

# The named styles of instructions and scenes. Emotions follow a convention: sadness is slow, low and flat.
STYLES: dict[str, SpeakingStyle] = {
    "fast": SpeakingStyle(rate=1.4), "slow": SpeakingStyle(rate=0.7),
    "high": SpeakingStyle(pitch=4), "low": SpeakingStyle(pitch=-4),
    "loud": SpeakingStyle(loudness=6), "soft": SpeakingStyle(loudness=-8), "whisper": SpeakingStyle(whisper=True),
    "sad": SpeakingStyle(rate=0.8, pitch=-2, range=0.5, loudness=-3),
    "happy": SpeakingStyle(rate=1.1, pitch=2, range=1.6),
    "flat": SpeakingStyle(range=0.3),
}  # fmt: skip


class Mark(NamedTuple):
    """A disfluency in a line: words `start` to `end` (excluded) are a filler, a repetition or a repair."""

    kind: MarkKind
    start: int
    end: int


@dataclass(frozen=True)
class Line:
    """A contribution of a speaker.

    Attributes:
        role: the speaker.
        text: the text to speak.
        kind: "turn", "backchannel" or "interruption"; the last two belong to the turn before.
        style: a key of `STYLES`; "" for the normal style.
        marks: its disfluencies.
        tool: a tool call of the assistant: its name (key "name") and its arguments.
    """

    role: str
    text: str
    kind: Kind = "turn"
    style: str = ""
    marks: tuple[Mark, ...] = ()
    tool: tuple[tuple[str, str], ...] = ()

    @property
    def speaking_style(self) -> SpeakingStyle:
        """The values of the style."""
        return STYLES[self.style] if self.style else NEUTRAL_STYLE


@dataclass(frozen=True)
class Script:
    """A conversation of two roles. Raises `UserError` if it cannot be rendered."""

    scene: str
    lang: str
    roles: tuple[str, str]
    lines: tuple[Line, ...]

    def __post_init__(self) -> None:
        turn_role = ""  # the role whose turn it is
        for number, line in enumerate(self.lines, 1):
            where = f"script {self.scene}, line {number}"
            if line.role not in self.roles:
                raise UserError(f"{where}: no role {line.role!r}; there are {' and '.join(self.roles)}")
            if line.style and line.style not in STYLES:
                raise UserError(f"{where}: no style {line.style!r}; there are {', '.join(STYLES)}")
            if not words_of(line.text, self.lang) or len(line.text) > LONGEST:
                raise UserError(f"{where}: must hold something to say, of at most {LONGEST} characters")
            if line.kind != "turn" and turn_role in ("", line.role):
                raise UserError(f"{where}: a {line.kind} needs a turn of the other one before it")
            turn_role = turn_role if line.kind == "backchannel" else line.role
        if len(set(self.roles)) != 2 or not turn_role:
            raise UserError(f"script {self.scene}: needs two roles and at least one turn")

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists and scalars."""
        return asdict(self)


def words_of(text: str, lang: str) -> list[str]:
    """Return the units that have times: English words, Mandarin characters."""
    return [match[0] for match in _matches(text, lang)]


def first_words(text: str, count: int, lang: str) -> str:
    """Return the text up to the end of its `count`-th word."""
    return text[: list(_matches(text, lang))[count - 1].end()]


def _matches(text: str, lang: str) -> Iterator[re.Match[str]]:
    return re.finditer(r"[\u4e00-\u9fff]" if lang == "zh" else r"\w[^\s]*\w|\w", text)
