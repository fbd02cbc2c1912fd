"""`sg2 data annotate` goes on where `clean` ended: nothing is cleaned again, and kept clips get their labels."""

from __future__ import annotations

import random

import soundfile
from typer.testing import CliRunner

from speechgpt2.cli import app
from speechgpt2.curriculum.sentences import sentence
from speechgpt2.data.pipeline import shar
from speechgpt2.data.pipeline.results import Results
from speechgpt2.tts.utterance import Voice
from speechgpt2.tts.voices import speak
from speechgpt2.types import SAMPLE_RATE
from tests import needs

VOICE = Voice("espeak", "m3", "en", "en-us")


@needs.extra("data", "pyarrow")
@needs.voice(VOICE)
def test_labels_are_added_to_a_run(tmp_path):
    voice, rng = VOICE, random.Random(1)
    (tmp_path / "in").mkdir()
    for number in range(3):
        text = " ".join(sentence(rng, "en") for _ in range(3))
        soundfile.write(tmp_path / "in" / f"{number}.wav", speak(text, voice).pcm, SAMPLE_RATE)
        (tmp_path / "in" / f"{number}.txt").write_text(text)
    run, out = CliRunner(), str(tmp_path / "out")
    clean = ["data", "clean", str(tmp_path / "in"), "-o", out, "--preset", "tts-strict", "--workers", "1"]
    assert "kept 3 clips" in run.invoke(app, clean).output
    before = {stage: count for stage, count, *_ in times(tmp_path)}
    result = run.invoke(app, ["data", "annotate", out, "--workers", "1"])
    assert result.exit_code == 0 and "kept 3 clips" in result.output
    after = {stage: count for stage, count, *_ in times(tmp_path)}
    assert after == {**before, "align": 3, "prosody": 3}
    for clip, pcm in shar.read(tmp_path / "out" / "shar"):
        assert len(clip.align.words) >= 3 and 0 < clip.align.words[-1].end <= len(pcm) / SAMPLE_RATE + 0.1
        assert clip.prosody.f0_mean and {"align", "prosody"} <= set(clip.labels_from)
    assert "nothing to do" in run.invoke(app, ["data", "annotate", out, "--workers", "1"]).output


def times(tmp_path) -> list:
    results = Results(tmp_path / "out" / "work" / "results.db")
    try:
        return list(results.times())
    finally:
        results.close()
