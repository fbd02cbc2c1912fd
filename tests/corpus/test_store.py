"""The corpus on disk: round trip, clear refusals, and a build that survives being killed."""

from __future__ import annotations

import os
import shutil
from collections import Counter

import numpy as np
import pytest
import soundfile

from speechgpt2.corpus import build_corpora
from speechgpt2.corpus.store import CLONED, Corpus, CorpusError, CorpusItem, CorpusWriter, Record, pairs
from speechgpt2.tts.utterance import Phone, Word
from speechgpt2.tts.voices import ASSISTANT_VOICES
from tests import needs

RECORD = Record(
    "a", "你好", "zh", speaker="s", voice="s/1", role="user", words=(Word("你", 0.0, 0.1), Word("好", 0.1, 0.2)),
    phones=(Phone("n", 0.0, 0.05),), extra={"skill": "greeting"},
)  # fmt: skip


def noise(samples: int) -> np.ndarray:
    return np.random.default_rng(samples).uniform(-0.5, 0.5, samples).astype(np.float32)


def test_round_trip(tmp_path):
    writer = CorpusWriter(tmp_path, {"seed": 1})
    pitch = np.full(5, 200.0)
    writer.write_part(0, [CorpusItem(RECORD, noise(1000), pitch), CorpusItem(Record("b", "typed", "en"))])
    writer.write_part(1, [CorpusItem(Record("c", "x", "en", split="test"), noise(960), pitch)])
    corpus = writer.finish(2)
    a, b, c = corpus.records
    assert (a.start, a.length, b.length, c.start, c.length) == (0, 1920, 0, 1920, 960)
    assert (a.words, a.phones, a.extra) == (RECORD.words, RECORD.phones, RECORD.extra)
    assert np.abs(corpus.pcm(a)[:1000] - noise(1000)).max() < 2**-15 and not corpus.pcm(a)[1000:].any()
    assert np.abs(corpus.pcm(c) - noise(960)).max() < 2**-15
    assert corpus.f0(a).tolist() == [200.0] * 5 + [0.0] * 3 and corpus.f0(c).tolist() == [200.0] * 4
    assert corpus.select(split="test") == [c] and corpus.hours == 2880 / 24000 / 3600


def test_corpus_errors_say_why(tmp_path):
    with pytest.raises(CorpusError, match="holds no corpus"):
        Corpus.open(tmp_path / "none")
    writer = CorpusWriter(tmp_path / "c", {"seed": 1})
    writer.write_part(0, [CorpusItem(RECORD, noise(960))])
    with pytest.raises(CorpusError, match="unfinished"):
        Corpus.open(tmp_path / "c")
    with pytest.raises(CorpusError, match="lacks 1 of 2"):
        writer.finish(2)
    with pytest.raises(CorpusError, match="another recipe"):
        CorpusWriter(tmp_path / "c", {"seed": 2})
    corpus = writer.finish(1)
    with pytest.raises(CorpusError, match="without pitch"):
        corpus.f0(corpus.records[0])
    (tmp_path / "c" / "pcm.i16").write_bytes(b"")
    with pytest.raises(CorpusError, match="damaged"):
        Corpus.open(tmp_path / "c")


def test_part_that_fails_half_way_is_not_kept(tmp_path):
    def items():
        yield CorpusItem(RECORD, noise(960))
        raise KeyboardInterrupt

    writer = CorpusWriter(tmp_path, {})
    with pytest.raises(KeyboardInterrupt):
        writer.write_part(0, items())
    assert not writer.has_part(0)


@needs.extra("synthesis", "pyworld")
@needs.voice(*ASSISTANT_VOICES.values())
def test_resumed_build_gives_the_same_bytes(tmp_path, monkeypatch):
    def build(name: str) -> Corpus:
        return build_corpora.build_dialogue_corpus(
            tmp_path / name, exchanges=2, says=2, dictations=2, test=2, workers=1
        )

    with monkeypatch.context() as patch:  # stopped just before the parts are joined
        patch.setattr(CorpusWriter, "finish", lambda self, parts: None)
        build("whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    parts = tmp_path / "killed" / "parts"
    (parts / "00001.jsonl").unlink()  # samples in place, index not yet: an unfinished part
    (parts / "00001.pcm").write_bytes(b"half")
    (parts / "00001.pcm.123").write_bytes(b"left by a killed writer")
    whole, resumed = build("whole"), build("killed")
    assert resumed.records == whole.records
    assert np.array_equal(resumed.samples, whole.samples)
    assert len(list(pairs(whole.records))) == 4
    assert {r.lang for r in whole.records} == {"en", "zh"}
    dictations = [r for r in whole.records if r.extra["skill"] == "dictation"]
    assert len(dictations) == 2 and all(r.role == "user" and r.words for r in dictations)
    assert not parts.exists()


@needs.extra("synthesis", "pyworld")
@needs.voice(*ASSISTANT_VOICES.values())
def test_takes_repeat_questions_and_askers_are_answered_in_text(tmp_path):
    corpus = build_corpora.build_dialogue_corpus(
        tmp_path, exchanges=40, says=1, dictations=1, test=1, seed=1, workers=1, voices="askers", takes=3
    )
    train = [r for r in corpus.records if r.split == "train"]
    replies = [r for r in train if r.role == "assistant"]
    assert all(r.length == 0 and r.text for r in replies)
    dictations = [r for r in train if r.extra["skill"] == "dictation"]
    assert len(dictations) == 3 and len({r.text for r in dictations}) == 1
    assert len({corpus.pcm(r).tobytes() for r in dictations}) == 3
    spoken = [question for question, _ in pairs(train) if question.length]
    by_name = Counter(question.id[: len("ex-0000-0000")] for question in spoken)
    assert len(by_name) > 20 and set(by_name.values()) == {3}
    unclear = [question for question in spoken if not question.text]
    assert unclear and all(r.extra["skill"] == "not_understood" for r in unclear)


@needs.extra("synthesis", "pyworld")
@needs.voice(*ASSISTANT_VOICES.values())
def test_speakers_can_be_imitated():
    records = [item.record for item in build_corpora._dictation_part(2, "askers", 3, 0, 24)]
    cloned = [record for record in records if record.extra["skill"] == CLONED]
    assert all(record.role == "" and record.text for record in cloned)
    by_speaker = Counter(record.speaker for record in cloned)
    assert len(by_speaker) >= 4 and list(by_speaker.values()).count(2) >= len(by_speaker) - 2  # the last speak once
    assert any("@" in speaker for speaker in by_speaker) and not all("@" in speaker for speaker in by_speaker)
    assert sum(record.role == "user" for record in records) == 48


def test_real_dictations_are_single_words_of_the_folder(tmp_path):
    digits = tmp_path / "real" / "fsdd"
    digits.mkdir(parents=True)
    tone = 0.3 * np.sin(np.arange(8000) * 0.3)
    for speaker in ("george", "theo"):  # theo is held out
        soundfile.write(digits / f"3_{speaker}_0.wav", tone, 8000)
    corpus = build_corpora.build_dialogue_corpus(
        tmp_path / "out", exchanges=0, says=0, dictations=0, test=0, workers=1, takes=2, real_speech=tmp_path / "real"
    )
    assert [(r.text, r.role, r.split, r.extra["skill"]) for r in corpus.records] == [
        ("three", "user", "train", "dictation"),
        ("three", "user", "train", "dictation"),
        ("three", "user", "test", "dictation"),
    ]


@needs.extra("synthesis", "pyworld")
@needs.voice(*ASSISTANT_VOICES.values())
def test_codec_corpus_has_pitch_phones_and_a_held_out_split(tmp_path):
    corpus = build_corpora.build_codec_corpus(tmp_path, hours=10 / 3600, workers=1)
    voiced = np.concatenate([corpus.f0(r) for r in corpus.records])
    assert 0.2 < (voiced > 0).mean() < 0.95 and voiced[voiced > 0].min() >= 50
    assert all(r.phones and r.length % 960 == 0 for r in corpus.records)
    speakers = {split: {r.speaker for r in corpus.select(split=split)} for split in ("train", "test")}
    assert speakers["train"] and speakers["test"] and speakers["train"].isdisjoint(speakers["test"])


def test_failed_part_is_reported_and_others_stay(tmp_path):
    writer = CorpusWriter(tmp_path, {"kind": "test"})
    with pytest.raises(CorpusError, match=r"part 1 failed.*run the build again"):
        build_corpora._build(writer, [good_part, deadly_part], 1, "test")
    assert writer.has_part(0) and not writer.has_part(1)
    assert len(build_corpora._build(writer, [good_part, good_part], 1, "test")) == 2


def good_part():
    yield CorpusItem(Record("a", "hello", "en"))


def deadly_part():
    os._exit(9)
