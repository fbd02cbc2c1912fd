"""Random speakers for espeak-ng, as many as needed, each given by a number.

espeak-ng combines the voice of a language with a *variant*, a text file of factors for formants, pitch, breath and more
(docs/voices.md of espeak-ng). A model soon memorises the few dozen variants of espeak-ng. Random variants within the
same ranges teach a recogniser to generalise over speakers.
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

# The probability of a line in a variant's file, and the line, drawn by `between(least, most)`.
_TRAITS: tuple[tuple[float, Callable[[Callable[[int, int], int]], str]], ...] = (
    (0.5, lambda between: f"voicing {between(35, 150)}"),
    (0.4, lambda between: f"consonants {between(60, 130)} {between(20, 130)}"),
    (0.3, lambda between: f"tone 600 {between(60, 200)} 1200 {between(60, 170)} 2000 {between(60, 150)}"),
    (0.3, lambda between: "breath " + " ".join(str(between(0, 6)) for _ in range(8))),
    (0.2, lambda between: f"echo {between(20, 130)} {between(5, 45)}"),
    (0.3, lambda between: f"intonation {between(1, 4)}"),
    (0.1, lambda between: f"klatt {between(2, 5)}"),
)


def variant_name(number: int) -> str:
    """Return the variant's name, which a `Voice` uses."""
    return f"drawn{number}"


def variant_number(name: str) -> int | None:
    """Return the number in a name of `variant_name`; None for any other name."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


def variant_text(number: int) -> str:
    """Return the text of the variant's file. The same number gives the same text."""
    rng = random.Random(f"variant/{number}")
    size = _log_uniform(rng, 1.05, 1.35)  # factor of all formants: a shorter vocal tract has higher ones
    low = min(215, max(55, 95 * size ** rng.uniform(0, 3) * _log_uniform(rng, 1, 1.4)))
    lines = [
        "language variant",
        f"name {variant_name(number)}",
        f"pitch {low:.0f} {low * rng.uniform(1.15, 1.8):.0f}",
        f"flutter {rng.randint(0, 20)}",
        f"roughness {rng.randint(0, 4)}",
    ]
    for formant in range(9):
        if formant > 5 and rng.random() < 0.2:
            lines.append(f"formant {formant} 10 10 10")
            continue
        height, width = _log_uniform(rng, 95, 1.5), _log_uniform(rng, 100, 1.7)  # per cent
        lines.append(f"formant {formant} {100 * size * _log_uniform(rng, 1, 1.2):.0f} {height:.0f} {width:.0f}")
    for share, trait in _TRAITS:
        if rng.random() < share:
            lines.append(trait(rng.randint))
    return "\n".join(lines) + "\n"


def write_variant(number: int, data: Path) -> None:
    """Write the variant into espeak-ng's `data` folder."""
    (data / _VARIANTS / variant_name(number)).write_text(variant_text(number), encoding="utf-8")


def copy_data(data: Path, folder: Path) -> Path:
    """Copy espeak-ng's `data` folder into `folder`, so that variants can be added.

    Files become symbolic links if possible.
    """
    return Path(shutil.copytree(data, folder / data.name, copy_function=_link))


def _link(source: str, target: str) -> None:
    try:
        os.symlink(source, target)
    except OSError:  # Windows lets only some users make links
        shutil.copy(source, target)


def _log_uniform(rng: random.Random, middle: float, factor: float) -> float:
    """Draw between middle / factor and middle · factor, uniformly in the logarithm."""
    return middle * exp(rng.uniform(-log(factor), log(factor)))
