"""Shards: Lhotse reads what is written, everything survives the way there and back, equal clips give equal bytes."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace

import numpy as np
import pytest

from speechgpt2.data.pipeline import scores, shar
from speechgpt2.data.pipeline.clip_audio import ClipAudio, Workspace
from speechgpt2.data.record import (
    AudioInfo,
    Clip,
    ClipText,
    Decision,
    DialogueEvent,
    Label,
    Language,
    Quality,
    Speaker,
    Style,
)
from speechgpt2.errors import UserError
from speechgpt2.tts.utterance import Alignment, Phone, Word
from speechgpt2.types import SAMPLE_RATE
from tests import needs


def test_changed_labels_do_not_rewrite_audio(clips, workspace, tmp_path):
    longer = replace(clips[0].audio, start=2.0, duration=1.0003)  # more than the recording holds, by rounding
    clips = [*clips, replace(clips[0], id="end", audio=longer)]
    shar.write(clips, workspace, tmp_path / "shar", tmp_path / "scratch")
    clip_audio = (tmp_path / "shar" / "recording.000000.tar").stat()
    titled = [replace(clip, title="A talk") for clip in clips]
    shar.write(titled, workspace, tmp_path / "shar", tmp_path / "scratch")
    assert (tmp_path / "shar" / "recording.000000.tar").stat() == clip_audio
    again = list(shar.read(tmp_path / "shar"))
    assert [clip for clip, _ in again] == titled and len(again[-1][1]) == SAMPLE_RATE
    lines = gzip.decompress((tmp_path / "shar" / "cuts.000000.jsonl.gz").read_bytes()).splitlines()
    assert json.loads(lines[-1])["recording"]["num_samples"] == SAMPLE_RATE
    shar.write(titled[:3], workspace, tmp_path / "shar", tmp_path / "scratch")
    assert len(list(shar.read(tmp_path / "shar"))) == 3


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    return Workspace(tmp_path, tmp_path / "work")


@pytest.fixture
def clips(workspace) -> list[Clip]:
    pcm = (np.random.default_rng(1).standard_normal(3 * SAMPLE_RATE) * 0.1).astype(np.float32)
    name, _ = workspace.add_recording([pcm])
    made = []
    for number in range(3):
        audio = AudioInfo("a.wav", SAMPLE_RATE, 1, number * 0.5, 1.0, "FLAC", name, -6.0)
        made.append(
            Clip(
                f"a.b-{number}", "a", audio=audio, lang=Language("zh", 0.5), text=ClipText("你好"),
                speakers=(Speaker("s1", (0.25,), "female"),),
                align=Alignment((Word("你", 0.1, 0.3), Word("好", 0.3, 0.7001)), (Phone("n", 0.1, 0.2),)),
                quality=Quality(snr=20.0, mos={"dnsmos": 3.25}, extra={"repeats": 1.0}), style=Style(caption_zh="慢"),
                events=(DialogueEvent("laugh", 0.1, 0.2, "s1"),), decisions=(Decision("level", 1, True, "ab"),),
                labels_from={"text": Label("x", kind="truth")},
            )
        )  # fmt: skip
    return made


def test_cut_round_trip(clips, workspace, tmp_path):
    assert shar.write(clips, workspace, tmp_path / "shar", tmp_path / "scratch", size=2) == 2
    found = list(shar.read(tmp_path / "shar"))
    assert [clip for clip, _ in found] == clips
    for clip, pcm in found:
        assert np.abs(pcm - ClipAudio(clip, workspace).pcm).max() < 1 / 32768


def test_lhotse_reads_it(clips, workspace, tmp_path):
    lhotse = needs.module("lhotse", "data")
    shar.write(clips, workspace, tmp_path / "shar", tmp_path / "scratch", size=2)
    cuts = list(lhotse.CutSet.from_shar(in_dir=str(tmp_path / "shar")))
    assert [cut.id for cut in cuts] == [clip.id for clip in clips]
    for cut, clip in zip(cuts, clips):
        assert shar.from_cut(cut.to_dict()) == clip
        [supervision] = cut.supervisions
        assert (supervision.text, supervision.language, supervision.speaker) == ("你好", "zh", "s1")
        assert [(item.symbol, item.start) for item in supervision.alignment["word"]] == [("你", 0.1), ("好", 0.3)]
        assert np.abs(cut.load_audio()[0] - ClipAudio(clip, workspace).pcm).max() < 1 / 32768


def test_lhotse_writes_it_again(clips, workspace, tmp_path):
    """Through Lhotse's own writer and reader, with our fields."""
    lhotse = needs.module("lhotse", "data")
    shar.write(clips, workspace, tmp_path / "shar", tmp_path / "scratch")
    (tmp_path / "again").mkdir()
    cuts = list(lhotse.CutSet.from_shar(in_dir=str(tmp_path / "shar")))
    for cut in cuts:  # Lhotse 1.33 notes a path there that it cannot write
        cut.custom = {"clip": cut.custom["clip"]}
    lhotse.CutSet.from_cuts(cuts).to_shar(str(tmp_path / "again"), {"recording": "flac"})
    again = lhotse.CutSet.from_shar(in_dir=str(tmp_path / "again"))
    assert [shar.from_cut(cut.to_dict()) for cut in again] == clips


def test_unchanged_shards_are_not_rewritten(clips, workspace, tmp_path):
    out, scratch = tmp_path / "shar", tmp_path / "scratch"
    shar.write(clips, workspace, out, scratch, size=1)
    before = {path.name: (path.stat().st_ino, path.read_bytes()) for path in out.iterdir()}
    changed = replace(clips[1], title="new")
    shar.write([clips[0], changed], workspace, out, scratch, size=1)
    after = {path.name: (path.stat().st_ino, path.read_bytes()) for path in out.iterdir()}
    assert len(before) == 6 and len(after) == 4  # the third shard has gone
    assert after["cuts.000000.jsonl.gz"] == before["cuts.000000.jsonl.gz"]
    assert after["cuts.000001.jsonl.gz"][1] != before["cuts.000001.jsonl.gz"][1]


def test_scores_of_all(clips, tmp_path):
    needs.module("pyarrow", "data")
    refused = replace(clips[2], decisions=(Decision("rules", 1, False, "", "noisy", 3.0, 10.0, "why"),))
    assert scores.write([*clips[:2], refused], tmp_path / "scores.parquet", tmp_path) == 3
    rows = list(scores.read(tmp_path / "scores.parquet"))
    assert [row["kept"] for row in rows] == [True, True, False]
    assert rows[0]["snr"] == 20.0 and rows[0]["mos"] == {"dnsmos": 3.25} and rows[0]["extra"] == {"repeats": 1.0}
    assert (rows[2]["reason"], rows[2]["score"], rows[2]["threshold"]) == ("noisy", 3.0, 10.0)
    with pytest.raises(UserError, match="there is no scores file"):
        list(scores.read(tmp_path / "absent"))
