"""Speakers that espeak-ng does not come with: drawn by number, as many as one likes.

espeak-ng makes a speaker of a language's voice and a *variant*, a text file of factors: formants, pitch, breath, and
others (its docs/voices.md). The few dozen that it ships are soon learnt by heart; random ones in the same ranges teach
a listener what speakers have in common.
"""

from __future__ import annotations

import os
import random
import re
import shutil
from collections.abc import Callable
from math import exp, log
from pathlib import Path

_NAME = re.compile(r"drawn(\d+)")
_VARIANTS = Path("voices") / "!v"

# How often a speaker has a line, and the line, drawn by `between(least, most)`.
_TRAITS: tuple[tuple[float, Callable[[Callable[[int, int], int]], str]], ...] = (
    (0.5, lambda between: f"voicing {between(35, 150)}"),
    (0.4, lambda between: f"consonants {between(60, 130)} {between(20, 130)}"),
    (0.3, lambda between: f"tone 600 {between(60, 200)} 1200 {between(60, 170)} 2000 {between(60, 150)}"),
    (0.3, lambda between: "breath " + " ".join(str(between(0, 6)) for _ in range(8))),
    (0.2, lambda between: f"echo {between(20, 130)} {between(5, 45)}"),
    (0.3, lambda between: f"intonation {between(1, 4)}"),
    (0.1, lambda between: f"klatt {between(2, 5)}"),
)


def name_of(number: int) -> str:
    """The variant's name, by which a `Voice` asks for it."""
    return f"drawn{number}"


def number_of(name: str) -> int | None:
    """The number in a name of `name_of`; None for any other name."""
    found = _NAME.fullmatch(name)
    return int(found[1]) if found else None


def text_of(number: int) -> str:
    """The variant's file, the same for the same number."""
    rng = random.Random(f"variant/{number}")
    size = _near(rng, 1.05, 1.35)  # of all formants: the shorter the vocal tract, the higher
    low = min(215, max(55, 95 * size ** rng.uniform(0, 3) * _near(rng, 1, 1.4)))
    lines = [
        "language variant",
        f"name {name_of(number)}",
        f"pitch {low:.0f} {low * rng.uniform(1.15, 1.8):.0f}",
        f"flutter {rng.randint(0, 20)}",
        f"roughness {rng.randint(0, 4)}",
    ]
    for formant in range(9):
        if formant > 5 and rng.random() < 0.2:
            lines.append(f"formant {formant} 10 10 10")
            continue
        height, width = _near(rng, 95, 1.5), _near(rng, 100, 1.7)  # per cent
        lines.append(f"formant {formant} {100 * size * _near(rng, 1, 1.2):.0f} {height:.0f} {width:.0f}")
    for share, trait in _TRAITS:
        if rng.random() < share:
            lines.append(trait(rng.randint))
    return "\n".join(lines) + "\n"


def write(number: int, data: Path) -> None:
    """Put the variant into espeak-ng's `data` folder."""
    (data / _VARIANTS / name_of(number)).write_text(text_of(number), encoding="utf-8")


def mirrored(data: Path, folder: Path) -> Path:
    """A copy of espeak-ng's `data` folder inside `folder`, of links where the system has them, to add variants to."""
    return Path(shutil.copytree(data, folder / data.name, copy_function=_link))


def _link(source: str, target: str) -> None:
    try:
        os.symlink(source, target)
    except OSError:  # Windows lets only some users make links
        shutil.copy(source, target)


def _near(rng: random.Random, middle: float, factor: float) -> float:
    """Between middle / factor and middle · factor, evenly in the logarithm."""
    return middle * exp(rng.uniform(-log(factor), log(factor)))
