"""Texts in sentences, recordings in windows of speech, subtitles."""

import numpy as np
import pytest

from speechgpt2 import long_form
from speechgpt2.long_form import (
    TranscriptSegment,
    TranscriptWord,
    sentences,
    speech_windows,
    to_json,
    to_srt,
    to_vtt,
    width,
)
from speechgpt2.types import SAMPLE_RATE


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("The sky is blue.", ["The sky is blue."]),
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ('He said "Go." Then he left.', ['He said "Go.', "Then he left."]),
        ("Mr. Smith has 3.5 apples. Dr. No has none.", ["Mr. Smith has 3.5 apples.", "Dr. No has none."]),
        ("今天天气很好。我们去公园吧！", ["今天天气很好。", "我们去公园吧！"]),
        ("a line\nanother line", ["a line", "another line"]),
        ("... !!", []),
        ("", []),
    ],
)
def test_sentences(text, parts):
    assert sentences(text) == parts


def test_long_sentences_are_cut_between_clauses_then_words():
    text = "When the rain had stopped at last, we walked along the river, and nobody of us said a single word about it"
    parts = sentences(text)
    assert parts[0].endswith("last,") and " ".join(parts) == text
    assert all(width(part) <= long_form.MAX_WIDTH for part in parts)
    assert " ".join(sentences("word " * 100)) == ("word " * 100).strip()
    chinese = "我" * 100
    assert "".join(sentences(chinese)) == chinese and len(sentences(chinese)) == 5
    assert sentences("x" * 200) == ["x" * 200]


@pytest.mark.parametrize(
    ("sentence", "read"),
    [
        ("hi", "hi."),
        ("你好", "你好。"),
        ("at 7", "at 7."),
        ("Hi!", "Hi!"),
        ('"Go."', '"Go."'),
        ("well,", "well,"),
        ("", ""),
    ],
)
def test_sentence_is_read_with_a_mark_at_its_end(sentence, read):
    assert long_form.with_final_mark(sentence) == read


def test_cutting_is_linear_in_the_text():
    assert len(sentences("nobody. " * 20_000)) == 20_000
    assert sentences("." * 100_000) == [] and sentences('."' * 50_000) == [] and sentences(" " * 100_000) == []


def test_joining_segments():
    assert long_form.join(["One two.", "", "Three."]) == "One two. Three."
    assert long_form.join(["今天很好。", "我们去吧"]) == "今天很好。我们去吧"


@pytest.mark.parametrize(
    ("text", "seconds", "fault"),
    [
        ("This text has some forty-two letters in it.", 0.5, "left words out"),
        ("This text has some forty-two letters in it.", 2.0, None),
        ("This text has some forty-two letters in it.", 12.0, None),  # whispered slowly, with pauses
        ("This text has some forty-two letters in it.", 20.0, "far longer"),
        ("hi", 0.4, None),
        ("hi", 7.3, "far longer"),
        ("777777", 5.0, None),  # seven hundred and seventy-seven thousand …
        ("你好", 2.4, None),
        ("你好", 6.0, "far longer"),
        ("今天天气很好，我们去公园吧。", 0.5, "left words out"),
        ("今天天气很好，我们去公园吧。", 6.0, None),
    ],
)
def test_speech_of_an_impossible_length_is_a_fault(text, seconds, fault):
    found = long_form.speech_fault(text, round(seconds * SAMPLE_RATE))
    assert (fault in found) if fault else found is None


def loudness(block: np.ndarray) -> float:
    """A detector of voice activity: loud is speech."""
    return float(np.abs(block).max() > 0.1)


def recording(*seconds: float) -> np.ndarray:
    """Silence and speech by turns."""
    levels = [np.full(round(s * SAMPLE_RATE), 0.5 * (n % 2), np.float32) for n, s in enumerate(seconds)]
    return np.concatenate(levels) * np.sin(np.arange(sum(map(len, levels))) / 20).astype(np.float32)


def cut(pcm: np.ndarray, size: int, max_seconds: float = 5.0) -> list[long_form.SpeechWindow]:
    return list(speech_windows((pcm[i : i + size] for i in range(0, len(pcm), size)), max_seconds, loudness))


def test_short_recording_is_one_window():
    pcm = recording(1.0, 1.0, 1.0)
    (window,) = cut(pcm, 1000)
    assert (window.start, window.end) == (0.0, 2.5) and np.array_equal(window.pcm, pcm[: len(window.pcm)])
    assert [len(window.pcm) for window in speech_windows([])] == [0]


@pytest.mark.parametrize("size", [100, 4_000, 10**9])
def test_windows_are_the_speech_between_pauses(size):
    pcm = recording(3.0, 2.0, 1.0, 1.5, 0.2, 1.0, 4.0)  # 0.2 s is no pause
    windows = cut(pcm, size)
    assert len(windows) == 2
    for window, (start, end) in zip(windows, [(3.0, 5.0), (6.0, 8.7)]):
        assert start - 0.3 < window.start < start and end < window.end < end + 0.3
        assert np.array_equal(window.pcm, pcm[round(window.start * SAMPLE_RATE) :][: len(window.pcm)])


def test_speech_without_pause_is_cut_at_the_limit_without_loss():
    pcm = recording(0.0, 13.0)
    windows = cut(pcm, 5_000)
    assert np.array_equal(np.concatenate([window.pcm for window in windows]), pcm)
    assert all(window.end - window.start <= 5.0 for window in windows)
    assert all(a.end == pytest.approx(b.start) for a, b in zip(windows, windows[1:]))


def test_silence_has_no_windows():
    assert cut(recording(20.0), 5_000) == []
    assert cut(recording(8.0, 0.03, 8.0), 5_000) == []  # a click


def test_subtitles():
    segments = [TranscriptSegment(0.5, 61.25, "one"), TranscriptSegment(3_600.0, 3_601.0, "two")]
    assert "".join(long_form.to_srt(segments)) == (
        "1\n00:00:00,500 --> 00:01:01,250\none\n\n2\n01:00:00,000 --> 01:00:01,000\ntwo\n\n"
    )
    assert "".join(long_form.to_vtt(segments)).startswith("WEBVTT\n\n00:00:00.500 --> 00:01:01.250\none\n\n")


def test_subtitles_with_the_times_of_words():
    words = (TranscriptWord("Two", 0.5, 0.75), TranscriptWord(" words.", 0.8, 1.0))
    segments = [TranscriptSegment(0.5, 1.0, "Two words.", words), TranscriptSegment(2.0, 3.0, "None.")]
    srt = "".join(to_srt(segments))
    assert srt.startswith("1\n00:00:00,500 --> 00:00:00,750\nTwo\n\n2\n00:00:00,800") and "3\n00:00:02,000" in srt
    assert "Two <00:00:00.800>words.\n\n00:00:02.000 --> 00:00:03.000\nNone.\n\n" in "".join(to_vtt(segments))
    assert to_json(segments[0])["words"][1] == {"word": "words", "start": 0.8, "end": 1.0}
    assert "words" not in to_json(segments[1])
