"""`sg2 eval transcription`: which recordings are drawn, and the rates of the model and of the judge."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from speechgpt2 import audio
from speechgpt2.errors import UserError
from speechgpt2.eval import transcription

TEXTS = {"a": "one two three four", "b": "five six", "c": "七八九"}


class FakeModel:
    """Transcribes by the length of a recording: right, but for the last word of the longest."""

    lm = SimpleNamespace(prompt=SimpleNamespace(transcription_system=None))

    def transcribe(self, pcm: np.ndarray) -> str:
        return {24_000: "one two three", 12_000: "Five, six!", 6_000: "七八九"}[len(pcm)]


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    for name, samples in {"a": 24_000, "b": 12_000, "c": 6_000, "silent": 100}.items():
        audio.save(tmp_path / f"{name}.wav", np.full(samples, 0.1, np.float32))
    for name, text in TEXTS.items():
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    return tmp_path


def test_rates_by_language(recordings, tmp_path, capsys):
    rows = transcription.main(str(recordings), FakeModel(), out=tmp_path / "out")
    found = {row.test_set: (row.n, row.error_name, row.error_rate, row.exact) for row in rows}
    assert found == {"English": (2, "WER", pytest.approx(1 / 6), 0.5), "Mandarin": (1, "CER", 0.0, 1.0)}
    assert "Transcription" in capsys.readouterr().out
    assert (tmp_path / "out" / "transcription.json").is_file()


def test_at_most_n_of_a_language(recordings):
    rows = transcription.main(str(recordings), FakeModel(), n=1)
    assert {row.test_set: row.n for row in rows} == {"English": 1, "Mandarin": 1}


def test_nothing_with_a_transcript(tmp_path):
    audio.save(tmp_path / "a.wav", np.full(24_000, 0.1, np.float32))
    with pytest.raises(UserError, match="no recording of at most 60 s with a transcript"):
        transcription.main(str(tmp_path), FakeModel())
