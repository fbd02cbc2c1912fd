"""The record: what is written is read again, and what is no record is refused with a reason."""

from __future__ import annotations

from dataclasses import replace

import pytest

from speechgpt2.data.record import (
    Alignment,
    AudioInfo,
    Clip,
    ClipText,
    Decision,
    DialogueEvent,
    Label,
    Language,
    Prosody,
    Quality,
    Source,
    Speaker,
    Style,
)  # fmt: skip
from speechgpt2.errors import UserError
from speechgpt2.tts.utterance import Phone, Word

FULL = Clip(
    "a-0001", "a", "A talk",
    Source("https://x.org/a.mp3", "2026-01-01T00:00:00Z", '"1"', "ab", True, "CC BY", "CC-BY-4.0"),
    AudioInfo("audio/a.mp3", 24_000, 1, 1.5, 3.0, "MP3", "cd", -2.5), Language("zh", 0.9),
    ClipText("你好", "你好", ("你好", "你号"), 0.5, (Word("你好", 0.1, 0.5),)),
    (Speaker("s1", (0.5, -0.5), "female", "adult"),),
    Alignment((Word("你", 0.1, 0.3),), (Phone("n", 0.1, 0.2),), (Phone("3", 0.1, 0.3),)),
    Prosody(200.0, 2.0, 150.0, 300.0, -23.0, 4.0, (0.5,)),
    Quality(30.0, -23.0, 11_000.0, 0.0, 0.0, 0.1, 0.1, 0.2, {"dnsmos": 3.5}, {"repeats": 0.0}),
    Style("sad", "home", "北京", "慢", "slow"), (DialogueEvent("laugh", 0.5, 0.75, "s1"),),
    (Decision("snr", 1, False, "ef", "snr", 3.0, 10.0, "too noisy", 1.0),), {"lang": Label("x", "1", 0.5, "truth")},
)  # fmt: skip


def test_everything_survives_a_round_trip():
    assert Clip.from_json(FULL.to_json()) == FULL
    assert Clip.from_dict(FULL.to_dict()).to_json() == FULL.to_json()


def test_unknown_fields_are_not_written():
    assert Clip("a").to_json() == '{"id":"a"}'
    assert Clip.from_json('{"id":"a"}') == Clip("a")


def test_zero_is_written():
    clip = Clip("a", quality=Quality(snr=0.0), audio=AudioInfo(channels=0))
    assert Clip.from_json(clip.to_json()).quality.snr == 0.0


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"id":"a","qualty":{}}', "clip: unknown key 'qualty'; did you mean 'quality'?"),
        ('{"id":"a","quality":{"snr":"loud"}}', "clip.quality.snr: expected float, got 'loud'"),
        ('{"id":"a","quality":{"snr":true}}', "clip.quality.snr: expected float, got 'True'"),
        ('{"title":"a"}', "clip: missing key 'id'"),
        ('{"id":"a","align":{"words":[["x",0.1]]}}', "clip.align.words[0]: expected a list of text, start, end"),
        (
            '{"id":"a","events":[{"type":"cough","start":0,"end":1}]}',
            "clip.events[0].type: expected one of backchannel",
        ),
        ("[1]", "clip: expected a mapping"),
        ("{", "not a record"),
        ("[" * 100_000, "not a record"),
    ],
)
def test_invalid_record_is_a_user_error(line, complaint):
    with pytest.raises(UserError) as error:
        Clip.from_json(line)
    assert complaint in str(error.value)


def test_one_negative_decision_rejects():
    good = Decision("a", 1, True)
    assert Clip("x", decisions=(good,)).kept and not FULL.kept
    assert replace(FULL, decisions=(good, *FULL.decisions)).rejection == FULL.decisions[0]


def test_nan_is_not_written():
    with pytest.raises(ValueError):
        Clip("a", quality=Quality(snr=float("nan"))).to_json()


def test_crawler_lines_are_records():
    line = {
        "id": "ab12", "title": "", "lang": {"code": "en", "confidence": None},
        "source": {"url": "https://x.org/a", "fetched_at": "2026", "etag": None, "sha256": "ab", "robots": True,
                   "licence_raw": "CC0", "spdx": "CC0-1.0"},
        "audio": {"path": "audio/ab/ab12.flac", "sample_rate": 24_000, "channels": 1, "start": 0, "duration": 2.5,
                  "format": "FLAC", "pcm_hash": "cd"},
        "decisions": [{"stage": "crawl", "version": 1, "keep": True, "reason": "", "detail": ""}],
    }  # fmt: skip
    assert Clip.from_dict(line).audio.duration == 2.5
