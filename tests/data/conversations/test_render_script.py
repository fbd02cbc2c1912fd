"""Conversations as sound: exact times, cut turns, places, styles that are measured, builds that resume."""

import json
import random
import shutil

import numpy as np
import pytest
import soundfile

from speechgpt2.config import from_dict
from speechgpt2.data.conversations import build as building
from speechgpt2.data.conversations.acoustics import AcousticsConfig, apply_acoustics, telephone
from speechgpt2.data.conversations.render_script import MAX_OVERLAP, render_script
from speechgpt2.data.conversations.script import NEUTRAL_STYLE, STYLES, Line, Mark, Script, words_of
from speechgpt2.data.conversations.speaking_style import MeasuredStyle, Tolerance, apply_style, measure, style_error
from speechgpt2.data.conversations.timing import Distribution, TimingConfig
from speechgpt2.errors import UserError
from speechgpt2.tts.utterance import Utterance, Voice, Word
from speechgpt2.tts.voices import speak, training_voices
from speechgpt2.types import SAMPLE_RATE
from tests import needs

WORD = 0.2  # seconds of each word of `beeps`


def beeps(line: Line) -> Utterance:
    """A speaker whose every word is a beep of its own height, so that the mix can be checked against the times."""
    time = np.arange(int(WORD * SAMPLE_RATE)) / SAMPLE_RATE
    words = words_of(line.text, "en")
    pcm = np.concatenate([0.3 * np.sin(2 * np.pi * (300 + 100 * i) * time) for i in range(len(words))])
    times = tuple(Word(word, i * WORD, (i + 1) * WORD) for i, word in enumerate(words))
    return Utterance(pcm.astype(np.float32), line.text, "en", Voice("test", "beep", "en"), times, ())


def timing(gap=0.3, reaction=0.25, backchannel=0.5, interruption=0.5) -> TimingConfig:
    return TimingConfig(*(Distribution((value, value)) for value in (gap, reaction, backchannel, interruption)))


def act(*lines: Line, **times):
    script = Script("s", "en", ("a", "b"), lines)
    return render_script(script, {"a": beeps, "b": beeps}, timing(**times), random.Random(0))


LONG = "one two three four five, six seven eight nine ten"


def test_turns_follow_with_the_gap():
    first, second = act(Line("a", "one two"), Line("b", "three")).lines
    assert second.start == pytest.approx(first.end + 0.3) and (first.channel, second.channel) == (0, 1)
    first, second = act(Line("a", LONG), Line("b", "three"), gap=-0.4).lines
    assert second.start == pytest.approx(first.end - 0.4)
    first, second = act(Line("a", LONG), Line("b", "three"), gap=-9.0).lines
    assert second.start == pytest.approx(first.end - MAX_OVERLAP * (first.end - first.start))
    first, second = act(Line("a", "one two"), Line("a", "three"), gap=-0.3).lines
    assert second.start > first.end  # nobody speaks over himself


def test_backchannel_overlaps_the_turn_without_shifting_it():
    plain = act(Line("a", LONG), Line("b", "yes"))
    turn, back, answer = act(Line("a", LONG), Line("b", "mhm", "backchannel"), Line("b", "yes")).lines
    assert back.start == pytest.approx((turn.start + turn.end) / 2) and not turn.cut
    assert answer.start == pytest.approx(plain.lines[1].start)


def test_interrupted_turn_ends_with_a_word_in_audio_and_text():
    done = act(Line("a", LONG), Line("b", "wait", "interruption"), Line("a", "yes"))
    turn, interruption, _ = done.lines
    assert interruption.start == pytest.approx(turn.start + 1.0)
    assert turn.text == "one two three four five, six seven" and turn.cut  # 1.25 s in, the seventh is being said
    assert turn.words[-1].end == pytest.approx(turn.start + 7 * WORD)
    after = done.pcm[0, int((turn.words[-1].end + 0.03) * SAMPLE_RATE) : int(done.lines[2].start * SAMPLE_RATE)]
    assert not after.any()
    kinds = {event.type: event for event in done.events}
    assert kinds["interruption"].by == 1 and kinds["overlap"].end == pytest.approx(min(turn.end, interruption.end))


def test_late_interruption_cuts_nothing():
    turn, _ = act(Line("a", "one two"), Line("b", "wait", "interruption"), reaction=0.7).lines
    assert not turn.cut and turn.text == "one two"


def test_word_times_match_the_audio():
    done = act(Line("a", LONG), Line("b", "mhm", "backchannel"), Line("b", "six seven"), gap=-0.3)
    for line in done.lines:
        for number, word in enumerate(line.words):
            span = done.pcm[line.channel, round(word.start * SAMPLE_RATE) : round(word.end * SAMPLE_RATE)]
            peak = np.abs(np.fft.rfft(span)).argmax() * SAMPLE_RATE / len(span)
            assert peak == pytest.approx(300 + 100 * number, abs=6)


def test_spoken_marks_become_events_with_times():
    marked = Line("a", LONG, marks=(Mark("filler", 0, 2), Mark("repair", 8, 10)))
    whole = act(marked)
    assert [(e.type, e.start, e.end) for e in whole.events] == [
        ("filler", pytest.approx(0.3), pytest.approx(0.7)), ("repair", pytest.approx(1.9), pytest.approx(2.3)),
    ]  # fmt: skip
    cut = act(marked, Line("b", "wait", "interruption"))
    assert "repair" not in {event.type for event in cut.events}


def test_acoustics_keep_length_and_times():
    time = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    pcm = np.stack([0.3 * np.sin(2 * np.pi * 1000 * time), np.zeros(SAMPLE_RATE)]).astype(np.float32)
    same, done = apply_acoustics(pcm, AcousticsConfig(), random.Random(0))
    assert np.array_equal(same, pcm) and done == []
    other, done = apply_acoustics(pcm, AcousticsConfig(1.0, 1.0, 1.0), random.Random(0))
    assert other.shape == pcm.shape and done == ["room", "noise", "telephone"] and not np.allclose(other, pcm)
    received = telephone(pcm[0])
    middle = slice(2000, -2000)
    assert np.abs(received[middle] - pcm[0][middle]).max() < 0.02  # a tone inside the band: no shift, no loss
    for hertz in (100, 5000):
        assert np.abs(telephone(0.3 * np.sin(2 * np.pi * hertz * time))[middle]).max() < 0.01


TOLERANCE = Tolerance()
SPEAKERS = [training_voices(lang)[12] for lang in ("en", "zh")]


def test_style_error_is_in_tolerances():
    assert style_error(NEUTRAL_STYLE, MeasuredStyle(1.0, 0.0, 1.0, 0.0, 0.8), TOLERANCE) == 0.0
    assert style_error(STYLES["fast"], MeasuredStyle(1.4 / 1.2, 0.0, 1.0, 0.0, 0.8), TOLERANCE) == pytest.approx(1.0)
    assert style_error(STYLES["fast"], MeasuredStyle(1.0, 0.0, 1.0, 0.0, 0.8), TOLERANCE) > 1
    assert style_error(STYLES["low"], MeasuredStyle(1.0, 4.0, 1.0, 0.0, 0.8), TOLERANCE) == pytest.approx(4.0)
    assert style_error(STYLES["soft"], MeasuredStyle(1.0, 0.0, 1.0, 0.0, 0.8), TOLERANCE) > 1
    assert style_error(STYLES["happy"], MeasuredStyle(1.1, 2.0, 0.5, 0.0, 0.8), TOLERANCE) > 1
    assert style_error(STYLES["whisper"], MeasuredStyle(1.0, 0.0, 1.0, 0.0, 0.8), TOLERANCE) > 1


@needs.extra("synthesis", "pyworld")
@needs.voice(*SPEAKERS)
@pytest.mark.parametrize(
    "voice, text", zip(SPEAKERS, ("I would like the soup and some water.", "我要一碗面条，再来一杯茶。"))
)
def test_engine_follows_the_style(voice, text):
    neutral = speak(text, voice)
    for name, style in ((name, STYLES[name]) for name in ("fast", "soft", "sad", "whisper")):
        said = speak(text, apply_style(voice, style))
        assert style_error(style, measure(said, neutral), TOLERANCE) < 1, name
        wrong = STYLES["slow" if style.rate >= 1 else "fast"]
        assert style_error(wrong, measure(said, neutral), TOLERANCE) > 1 or name == "whisper"


def recipe(**changes) -> building.Recipe:
    return from_dict(building.Recipe, {"conversations": 4, "scenes": ["travel", "story"], **changes})


@needs.extra("synthesis", "pyworld")
@needs.voice(*SPEAKERS)
def test_build_resumes_to_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(building, "PART", 2)  # known to this process: it counts the parts
    asked = recipe()
    out = tmp_path / "a"
    for part in range(2):
        for name in ("audio", "turns", "parts"):
            (out / name).mkdir(parents=True, exist_ok=True)
        building._make_part((asked, out, part))
    count, hours = building.build(asked, out)
    assert count == 4 and hours > 0
    rows = [json.loads(line) for line in (out / building.CONVERSATIONS_FILE).read_text(encoding="utf-8").splitlines()]
    for row in rows:
        pcm, rate = soundfile.read(out / row["audio"])
        assert pcm.shape == (row["samples"], 2) and rate == SAMPLE_RATE
        assert {line["channel"] for line in row["lines"]} == {0, 1}
    before = {p.name: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert building.build(asked, out) == (count, hours)
    assert {p.name: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    with pytest.raises(UserError, match="another recipe"):
        building.build(recipe(seed=1), out)


@pytest.mark.slow
@needs.extra("synthesis", "pyworld")
@needs.voice(*SPEAKERS)
def test_build_depends_neither_on_kills_nor_on_workers(tmp_path):
    asked = recipe(conversations=building.PART + 3)
    building.build(asked, tmp_path / "a", workers=1)
    building.build(asked, tmp_path / "b", workers=2)
    (tmp_path / "b" / "parts" / "00001.jsonl").unlink()  # as if killed before its end
    shutil.rmtree(tmp_path / "b" / "audio" / "000022.flac", ignore_errors=True)
    building.build(asked, tmp_path / "b", workers=2)
    for path in (p for p in (tmp_path / "a").rglob("*") if p.is_file()):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


@pytest.mark.parametrize(
    "values, complaint",
    [
        ({"conversations": 0}, "positive"), ({"languages": ["fr"]}, "en and zh"), ({"scenes": ["opera"]}, "no scene"),
        ({"timing": {"gap": {"values": [1.0, 0.0]}}}, "rising"), ({"lm": {}}, "unknown key 'lm'"),
    ],
)  # fmt: skip
def test_recipe_mistakes_are_user_errors(values, complaint):
    with pytest.raises(UserError, match=complaint):
        recipe(**values)
