"""The codec's judgement from clips to report, with a codec that copies, and Codec2 where it is installed."""

from __future__ import annotations

import json
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from speechgpt2 import extras
from speechgpt2.errors import UserError
from speechgpt2.eval import codec as judge
from speechgpt2.eval import metrics, report
from speechgpt2.eval.peers import Codec2, Copy
from speechgpt2.eval.testsets import Clip, recorded
from tests import needs
from tests.eval.test_metrics import noise, voice

CLIP = Clip(voice(170.0), "ah", "en", "nobody")


class Late:
    """A perfect copy, 20 ms late."""

    name, bitrate, delay = "late", 384_000, 480

    def copy(self, pcm: np.ndarray) -> Copy:
        codes = np.stack([np.arange(50) % 10] * 3, axis=1)
        return Copy(np.concatenate([np.zeros(self.delay, np.float32), pcm]), codes)


@needs.extra("eval", "pystoi", "pesq")
def test_a_perfect_copy_scores_perfectly():
    row = judge.judge(Late(), "tones", [CLIP, CLIP])
    assert row.stoi > 0.999 and row.pesq_wb > 4.5
    assert row.gross_pitch_error == row.voicing_error == row.hop_lock == 0
    assert row.perplexity == pytest.approx((10.0, 10.0, 10.0))
    assert (row.clips, row.seconds) == (2, 4.0)


@needs.extra("eval", "pystoi", "pesq")
def test_report(tmp_path):
    rows = judge.run([Late()], {"tones": [CLIP]})
    wide = Console(width=200, record=True, file=StringIO())
    report.show("Codec", rows, wide)
    assert "tones" in wide.export_text()
    header, rule, line = report.markdown(rows).splitlines()
    assert header.count("|") == rule.count("|") == line.count("|")
    assert "| 384,000 |" in line and "| 10 / 10 / 10 |" in line
    report.save_json(tmp_path / "codec.json", rows=rows)
    content = json.loads((tmp_path / "codec.json").read_text())
    assert content["rows"][0]["codec"] == "late" and content["machine"]["threads"] >= 1


def test_what_was_not_measured_is_null(tmp_path):
    row = judge.CodecRow("set", "codec", 1, *[float("nan")] * 7, perplexity=None)
    report.save_json(tmp_path / "x.json", rows=[row])
    assert json.loads((tmp_path / "x.json").read_text())["rows"][0]["stoi"] is None
    assert report.markdown([row]).splitlines()[2].count("–") == 8


def test_spectrograms(tmp_path):
    needs.module("matplotlib", "eval")
    from speechgpt2.eval.spectrogram import save_spectrograms

    save_spectrograms(tmp_path / "x.png", CLIP.pcm, [Late()])
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


@needs.tool("codec2")
@pytest.mark.parametrize("mode", ["700C", "1300"])
def test_codec2_round_trip(mode):
    peer = Codec2(mode)
    original, copy = metrics.align(CLIP.pcm, peer.copy(CLIP.pcm).pcm, peer.delay)
    assert len(copy) == len(CLIP.pcm)
    assert 0.01 < np.abs(copy).max() <= 1.0
    lost = metrics.mel_cepstral_distortion(original, copy)
    assert 0 < lost < 0.7 * metrics.mel_cepstral_distortion(original, noise())


def test_a_missing_package_is_named():
    with pytest.raises(UserError, match=r"no_such_judge is not installed.*speechgpt2\[eval\]"):
        extras.require("no_such_judge", "eval")


def test_a_folder_without_recordings_is_named(tmp_path):
    with pytest.raises(UserError, match=str(tmp_path)):
        recorded(tmp_path, 3)
