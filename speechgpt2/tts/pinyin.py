"""Hanzi to toned pinyin, one token per character, as espeak's voice `cmn-latn-pinyin` reads it.

espeak misreads hanzi (polyphones, neutral tones). pypinyin has a dictionary of phrases, and reads 行 correctly in 银行
and in 行走.
"""

from __future__ import annotations

from typing import NamedTuple

from speechgpt2.errors import MissingDependency

_PAUSES = {"，": ",", "、": ",", "；": ",", "：": ",", "。": ".", "！": "!", "？": "?"}
_PAUSES.update({mark: mark for mark in ",.!?;:"})

# espeak's dictionary lacks jiong, qiong and xiong and reads them as English. So they are written as phonemes.
_INITIALS = {"jiong": "tS;", "qiong": "tS;h", "xiong": "S;"}
_CONTOURS = {"1": "55", "2": "35", "3": "214", "4": "51", "5": "11"}


class Syllable(NamedTuple):
    """A character, its toned pinyin (``hang2``; 5 is the neutral tone) and the punctuation after it."""

    char: str
    pinyin: str
    pause: str

    @property
    def token(self) -> str:
        """The token for espeak, without spaces; it needs inline phonemes."""
        base, tone = self.pinyin[:-1], self.pinyin[-1]
        if base in _INITIALS:
            return f"[[{_INITIALS[base]}'yu{_CONTOURS[tone]}N]]{self.pause}"
        return self.pinyin + self.pause


def syllables(text: str) -> list[Syllable]:
    """Split Mandarin text into characters with their readings, in order.

    Raises:
        ValueError: a character is neither hanzi nor punctuation. Write Latin words and digits out in hanzi first.
        MissingDependency: pypinyin is not installed.
    """
    try:
        from pypinyin import Style, lazy_pinyin
    except ImportError as error:
        raise MissingDependency("Mandarin needs pypinyin: pip install 'speechgpt2[synthesis]'") from error
    chars = [c for c in text if not c.isspace()]
    # espeak applies third-tone sandhi, since it knows the prosodic phrase; pypinyin changes 一 and 不.
    readings = lazy_pinyin(
        "".join(chars),
        style=Style.TONE3,
        neutral_tone_with_five=True,
        errors=list,  # type: ignore[arg-type]  # one entry per unreadable character; their annotation says str
    )
    result: list[Syllable] = []
    for char, reading in zip(chars, readings, strict=True):
        if char in _PAUSES:
            if result:
                result[-1] = result[-1]._replace(pause=_PAUSES[char])
        elif "\u4e00" <= char <= "\u9fff":
            result.append(Syllable(char, reading, ""))
        elif char not in "“”‘’《》（）…—\"'-":
            raise ValueError(f"no Mandarin reading for {char!r} in {text!r}")
    return result
