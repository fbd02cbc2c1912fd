"""A folder of recordings for the tests of the runner: loud and quiet halves, and files that are no sound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechgpt2.types import SAMPLE_RATE


@pytest.fixture
def recordings(tmp_path) -> Path:
    folder = tmp_path / "recordings"
    (folder / "deep").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(5):
        pcm = rng.standard_normal(2 * SAMPLE_RATE) * np.repeat((0.1, 0.01), SAMPLE_RATE)
        soundfile.write(folder / "deep" / f"{number}.wav", pcm, SAMPLE_RATE)
    (folder / "broken.wav").write_bytes(b"RIFF and then nothing")
    return folder
