"""The codec's evaluation from clips to report, with a codec that copies, and Codec2 where it is installed."""

from __future__ import annotations

import json
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from speechgpt2 import audio, extras
from speechgpt2.asr import Transcription
from speechgpt2.dnsmos import OpinionScores
from speechgpt2.errors import UserError
from speechgpt2.eval import codec as evaluation
from speechgpt2.eval import metrics, report
from speechgpt2.eval.codec_systems import Codec2, Reconstruction
from speechgpt2.eval.judges import NO_ASR, Judges
from speechgpt2.eval.speech_sets import SpeechClip, recorded
from tests import needs
from tests.eval.test_metrics import noise, voice

CLIP = SpeechClip(voice(170.0), "ah", "en", "nobody")


class Late:
    """A perfect copy, 20 ms late."""

    name, bitrate, delay = "late", 384_000, 480

    def reconstruct(self, pcm: np.ndarray) -> Reconstruction:
        codes = np.stack([np.arange(50) % 10] * 3, axis=1)
        return Reconstruction(np.concatenate([np.zeros(self.delay, np.float32), pcm]), codes)


@needs.extra("eval", "pystoi", "pesq")
def test_perfect_copy_scores_perfectly():
    late, clips = Late(), [CLIP, CLIP]
    row = evaluation.codec_row(late, "tones", clips, [late.reconstruct(clip.pcm) for clip in clips])
    assert row.stoi > 0.999 and row.pesq_wb > 4.5
    assert row.gross_pitch_error == row.voicing_error == row.hop_lock == 0
    assert row.perplexity == pytest.approx((10.0, 10.0, 10.0))
    assert (row.clips, row.seconds) == (2, 4.0)


@needs.extra("eval", "pystoi", "pesq")
def test_report(tmp_path):
    rows, judge_rows = evaluation.evaluate([Late()], {"tones": [CLIP]}, Judges())
    assert judge_rows == []
    wide = Console(width=200, record=True, file=StringIO(), force_terminal=True)
    report.show("Codec", rows, wide)
    assert "tones" in wide.export_text()
    header, rule, line = report.markdown_table(rows).splitlines()
    assert header.count("|") == rule.count("|") == line.count("|")
    assert "| 384,000 |" in line and "| 10 / 10 / 10 |" in line
    report.save_json(tmp_path / "codec.json", rows=rows)
    content = json.loads((tmp_path / "codec.json").read_text())
    assert content["rows"][0]["codec"] == "late" and content["machine"]["threads"] >= 1


def test_unmeasured_values_are_null(tmp_path):
    row = evaluation.CodecRow("set", "codec", 1, *[float("nan")] * 7, perplexity=None)
    report.save_json(tmp_path / "x.json", rows=[row])
    assert json.loads((tmp_path / "x.json").read_text())["rows"][0]["stoi"] is None
    assert report.markdown_table([row]).splitlines()[2].count("–") == 8


def test_spectrograms(tmp_path):
    needs.module("matplotlib", "eval")
    from speechgpt2.eval.spectrogram import save_spectrograms

    save_spectrograms(tmp_path / "x.png", CLIP.pcm, [Late()])
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


@needs.tool("codec2")
@pytest.mark.parametrize("mode", ["700C", "1300"])
def test_codec2_round_trip(mode):
    system = Codec2(mode)
    original, copy = metrics.align(CLIP.pcm, system.reconstruct(CLIP.pcm).pcm, system.delay)
    assert len(copy) == len(CLIP.pcm)
    assert 0.01 < np.abs(copy).max() <= 1.0
    lost = metrics.mel_cepstral_distortion(original, copy)
    assert 0 < lost < 0.7 * metrics.mel_cepstral_distortion(original, noise())


def test_missing_package_is_named():
    with pytest.raises(UserError, match=r"no_such_package is not installed.*speechgpt2\[eval\]"):
        extras.require("no_such_package", "eval")


def test_folder_without_recordings_is_named(tmp_path):
    with pytest.raises(UserError, match=str(tmp_path)):
        recorded(tmp_path, 3)


class FakeAsr:
    """Understands the sign of the first sample that is not silent."""

    name, languages, independent = "fake", frozenset({"en"}), True

    def transcribe(self, pcm, language):
        first = pcm[np.flatnonzero(pcm)[0]]
        return Transcription("one two" if first > 0 else "one", language or "en")


class FakeMos:
    def score(self, pcm):
        return OpinionScores(1.0, 2.0, 3.0)


class FakeEncoder:
    def embed(self, pcm):
        return np.array([1.0, 0.0]) if len(pcm) % 2 else np.array([0.6, 0.8])


class Flips:
    """A codec that turns the wave over."""

    name, bitrate, delay = "flips", 1, 0

    def reconstruct(self, pcm):
        return Reconstruction(-pcm, None)


def test_judges_have_a_row_for_the_original_and_each_codec(monkeypatch):
    monkeypatch.setattr(evaluation, "codec_row", lambda *_: None)
    wave = np.linspace(0.1, 0.2, 24_001, dtype=np.float32)
    texts = [
        SpeechClip(wave, "One, two!", "en", "a"),
        SpeechClip(wave[1:], "1 2", "en", "a"),
        SpeechClip(wave, "one two three", "en", "b"),
    ]
    panel = Judges(FakeAsr(), FakeMos(), FakeEncoder(), ())
    _, (original, flipped) = evaluation.evaluate([Flips()], {"texts": texts}, panel)
    assert (original.codec, original.error_name, original.mos) == ("original", "WER", 3.0)
    assert original.error_rate == pytest.approx(1 / 7) and flipped.error_rate == pytest.approx(4 / 7)
    assert np.isnan(original.similarity) and flipped.similarity == 1.0
    assert (original.same_speaker, original.other_speaker) == (pytest.approx(0.6), pytest.approx(0.8))
    # recordings without transcripts are compared with what is understood of the original
    _, (original, flipped) = evaluation.evaluate([Flips()], {"people": [SpeechClip(wave, "", "", "")]}, panel)
    assert np.isnan(original.error_rate) and flipped.error_rate == 0.5 and np.isnan(original.same_speaker)
    # a judge that does not know the language has no numbers, the others have
    _, (original, _) = evaluation.evaluate([Flips()], {"texts": [SpeechClip(wave, "一", "zh", "a")]}, panel)
    assert np.isnan(original.error_rate) and original.error_name == "–" and original.mos == 3.0


@needs.extra("eval", "pystoi", "pesq")
def test_tables_say_that_no_independent_judge_was_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluation, "build_sets", lambda *_: {"tones": [CLIP]})
    monkeypatch.setattr(evaluation.judges, "load", lambda *_: Judges())
    rows, judge_rows = evaluation.main(None, out=tmp_path, peers=False)
    assert rows == judge_rows == []
    assert NO_ASR[:30] in capsys.readouterr().out and NO_ASR in (tmp_path / "codec.md").read_text()
    assert json.loads((tmp_path / "codec.json").read_text())["asr"] is None


def test_any_folder_of_recordings_is_a_set(tmp_path):
    (tmp_path / "phone calls").mkdir()
    audio.save(tmp_path / "phone calls" / "a.wav", CLIP.pcm)
    audio.save(tmp_path / "b.flac", CLIP.pcm)
    found = recorded(tmp_path, 3)
    assert set(found) == {tmp_path.name, "phone calls"}
    [clip] = found["phone calls"]
    assert (clip.text, clip.lang, clip.speaker) == ("", "", "") and len(clip.pcm) == len(CLIP.pcm)
