"""The meaning of a licence text: the raw string and, if it is certain, the SPDX identifier."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from speechgpt2.data.crawl.item_errors import ItemRejected

# The level of a statement; statements nearer to the recording take precedence.
ITEM, CHANNEL, SEED, NO_STATEMENT = 3, 2, 1, 0

ANY_LICENCE = "any"  # in an allow-list: every recording, with or without a licence
OPEN = (
    "CC0-1.0", "CC-PDM-1.0", "CC-BY-2.0", "CC-BY-2.5", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-SA-2.0", "CC-BY-SA-2.5",
    "CC-BY-SA-3.0", "CC-BY-SA-4.0",
)  # fmt: skip

_CC_URL = re.compile(r"creativecommons\.org/licen[sc]es/([a-z-]+)/(\d\.\d)", re.I)
_PUBLIC_URL = re.compile(r"creativecommons\.org/publicdomain/(zero|mark)/1\.0", re.I)
_CC_NAME = re.compile(r"\b(?:cc|creative[\s-]commons)[\s-]+((?:by|attribution).*?)[\s-]*v?(\d\.\d)(?!\d)", re.I)
_YOUTUBE = re.compile(r"creative commons attribution licen[sc]e \(reuse allowed\)", re.I)  # which is BY 3.0
_ZERO = re.compile(r"\bcc[\s-]?(?:0|zero)(?:[\s-]+(?:v?1\.0|universal|licen[sc]e)|\s*$)", re.I)
_OTHER_NAMES = ("MIT", "Apache-2.0", "ODbL-1.0", "ODC-By-1.0", "PDDL-1.0", "CDLA-Permissive-1.0", "CDLA-Permissive-2.0")
_OTHER_IDS = {name.lower(): name for name in _OTHER_NAMES}
_OTHER = re.compile(rf"\b({'|'.join(map(re.escape, _OTHER_NAMES))})(?![\w.-])", re.I)
_RESERVED = re.compile(r"all rights reserved|版权所有|保留所有权利", re.I)
_CONDITIONS = {"by", "nc", "nd", "sa"}
_WORDS = (
    ("attribution", "by"), ("non-commercial", "nc"), ("noncommercial", "nc"), ("no-derivatives", "nd"),
    ("noderivatives", "nd"), ("no-derivs", "nd"), ("noderivs", "nd"), ("share-alike", "sa"), ("sharealike", "sa"),
)  # fmt: skip


@dataclass(frozen=True)
class Statement:
    """A statement about a recording's licence: the raw text, and its level."""

    raw: str = ""
    level: int = NO_STATEMENT

    @property
    def spdx(self) -> str | None:
        """The SPDX identifier if the text is unambiguous."""
        return spdx(self.raw)


def spdx(raw: str) -> str | None:
    """The SPDX identifier of `raw` (a URL, an identifier, a sentence); None if it is ambiguous.

    A text that names two licences is ambiguous.
    """
    names = {*_creative_commons(raw), *(_OTHER_IDS[name.lower()] for name in _OTHER.findall(raw))}
    return names.pop() if len(names) == 1 else None


def _creative_commons(raw: str) -> Iterable[str]:
    for kind in _PUBLIC_URL.findall(raw):
        yield "CC0-1.0" if kind.lower() == "zero" else "CC-PDM-1.0"
    if _ZERO.search(raw):
        yield "CC0-1.0"
    if _YOUTUBE.search(raw):
        yield "CC-BY-3.0"
    for name, version in [*_CC_URL.findall(raw), *_CC_NAME.findall(raw)]:
        identifier = _conditions(name)
        if identifier:
            yield f"CC-{identifier}-{version}"


def _conditions(name: str) -> str | None:
    """Convert "Attribution-NonCommercial" or "by-nc" to "BY-NC"; None if a word is unknown."""
    text = re.sub(r"[\s_]+", "-", name.lower())
    for word, short in _WORDS:
        text = text.replace(word, short)
    parts = [part for part in text.split("-") if part and part not in ("license", "licence", "international")]
    if not parts or parts[0] != "by" or not set(parts) <= _CONDITIONS:
        return None
    return "-".join(part.upper() for part in ("by", "nc", "nd", "sa") if part in parts)


def is_statement(copyright_notice: str) -> bool:
    """Whether a copyright notice grants or reserves rights; "© 2024 Someone" alone does neither."""
    return spdx(copyright_notice) is not None or bool(_RESERVED.search(copyright_notice))


def strongest(statements: Iterable[Statement], allowed: Sequence[str]) -> Statement:
    """Return the statement that decides: the nearest to the recording; among equally near ones, one that forbids.

    The result does not depend on the order of the statements.
    """
    return min(statements, key=lambda s: (-s.level, permits(s, allowed), s.raw), default=Statement())


def permits(statement: Statement, allowed: Sequence[str]) -> bool:
    """Whether the allow-list permits the recording."""
    return ANY_LICENCE in allowed or statement.spdx in allowed


def rejection(statement: Statement) -> ItemRejected:
    """Return the rejection of a recording by its licence."""
    if not statement.raw:
        return ItemRejected("licence", "no licence is stated")
    return ItemRejected("licence", f"{statement.spdx or statement.raw[:200]!r} is not on the list")
