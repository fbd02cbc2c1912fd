"""The questions that benchmarks ask: recordings that the package ships, or those in a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from speechgpt2 import audio
from speechgpt2.errors import UserError

SHIPPED = Path(__file__).parent / "recordings"  # one question in English, one in Mandarin
SUFFIXES = (".wav", ".flac")


def load(folder: Path | None = None) -> list[np.ndarray]:
    """Load recordings `[N]` at 24 kHz, in the order of their names.

    Args:
        folder: A folder with .wav or .flac files; None for the shipped questions.

    Raises:
        UserError: There is no such folder, or it holds no recording.
    """
    source = SHIPPED if folder is None else folder
    if not source.is_dir():
        raise UserError(f"{source}: no such folder")
    paths = sorted(path for path in source.iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise UserError(f"{source}: holds no {' or '.join(SUFFIXES)}")
    return [audio.load(path) for path in paths]
