"""Endpointing: lines of voice and silence, and which events follow at which millisecond."""

import pytest

from speechgpt2.duplex.endpointing import (
    BargeIn,
    Endpointer,
    EndpointerSettings,
    TurnEnded,
    TurnPaused,
    TurnResumed,
    TurnStarted,
    UserIdle,
    samples,
)
from speechgpt2.errors import UserError

BLOCK = 32  # milliseconds


class Line:
    """A microphone that holds voice and silence, and what the turn endpointer made of them."""

    def __init__(self, **settings):
        self.endpointer, self.now = Endpointer(EndpointerSettings(**settings)), 0

    def play(self, milliseconds, probability):
        said = []
        for _ in range(milliseconds // BLOCK):
            self.now += BLOCK
            said += [(self.now, action) for action in self.endpointer.step(samples(self.now), probability)]
        return said

    def voice(self, milliseconds):
        return self.play(milliseconds, 0.9)

    def silence(self, milliseconds):
        return self.play(milliseconds, 0.05)


def names(said):
    return [type(action).__name__ for _, action in said]


def test_turn_starts_within_64_ms_with_its_prefix():
    line = Line()
    line.silence(960)
    (at, begin), *rest = line.voice(320)
    assert at == 960 + 64 and not rest
    assert begin == TurnStarted(samples(960), samples(64 + 300))


def test_click_starts_no_turn():
    line = Line()
    assert not line.silence(320) + line.voice(32) + line.silence(320) + line.voice(32) + line.silence(320)


def test_turn_pauses_then_ends():
    line = Line(speculate_ms=192, silence_ms=512)
    line.voice(640)
    assert line.silence(960) == [(640 + 192, TurnPaused()), (640 + 512, TurnEnded(samples(640)))]


def test_voice_in_a_pause_resumes_the_turn():
    line = Line(speculate_ms=192, silence_ms=512)
    line.voice(640)
    assert names(line.silence(320)) == ["TurnPaused"]
    assert line.voice(320) == [(640 + 320 + 64, TurnResumed())]
    assert [action for _, action in line.silence(960)] == [TurnPaused(), TurnEnded(samples(1280))]


def test_click_in_a_pause_does_not_resume():
    line = Line(speculate_ms=192, silence_ms=512)
    line.voice(640)
    said = line.silence(320) + line.voice(32) + line.silence(960)
    assert names(said) == ["TurnPaused", "TurnEnded"]
    assert said[-1] == (640 + 320 + 32 + 224, TurnEnded(samples(640)))


def test_short_gap_is_no_pause():
    line = Line()
    assert names(line.voice(640) + line.silence(160) + line.voice(640)) == ["TurnStarted"]


def test_hysteresis_keeps_a_fading_voice():
    line = Line()
    line.voice(320)
    assert not line.play(640, 0.4)
    assert names(line.play(640, 0.3)) == ["TurnPaused", "TurnEnded"]


def test_speculate_equal_to_silence_pauses_and_ends_at_once():
    line = Line(speculate_ms=480, silence_ms=480)
    line.voice(320)
    said = line.silence(640)
    assert names(said) == ["TurnPaused", "TurnEnded"] and said[0][0] == said[1][0]


@pytest.mark.parametrize("model", ["thinking", "speaking"])
def test_barge_in(model):
    line = Line(interrupt_ms=288)
    line.endpointer.set_model_state(model)
    said = line.voice(640)
    assert names(said) == ["BargeIn", "TurnStarted"]
    assert said[0][0] == (288 if model == "speaking" else 64)


def test_backchannel_or_cough_does_not_interrupt():
    line = Line(interrupt_ms=288)
    line.endpointer.set_model_state("speaking")
    for _ in range(3):
        assert not line.voice(256) + line.silence(320)


def test_backchannel_interrupts_with_a_short_interrupt_setting():
    line = Line(interrupt_ms=64)
    line.endpointer.set_model_state("speaking")
    assert names(line.voice(256)) == ["BargeIn", "TurnStarted"]


def test_voiced_parts_of_an_interruption_add_up():
    line = Line(interrupt_ms=288)
    line.endpointer.set_model_state("speaking")
    assert names(line.voice(192) + line.silence(96) + line.voice(192)) == ["BargeIn", "TurnStarted"]


def test_uninterruptible_reply_defers_the_turn():
    line = Line(interrupt_response=False)
    line.endpointer.set_model_state("speaking")
    assert not line.voice(960)
    line.endpointer.set_model_state("quiet")
    said = line.voice(320)
    assert names(said) == ["TurnStarted"] and said[0][1].at == samples(960)


def test_semantic_complete_turn_ends_at_once():
    line = Line(ending="semantic", speculate_ms=192, silence_ms=512, max_silence_ms=2000)
    line.voice(640)
    assert names(line.silence(256)) == ["TurnPaused"]
    line.endpointer.set_complete(True)
    assert line.silence(64) == [(640 + 256 + 32, TurnEnded(samples(640)))]


def test_semantic_complete_turn_ends_after_enough_silence():
    line = Line(ending="semantic", speculate_ms=64, complete_ms=192)
    line.voice(640)
    assert [at for at, _ in line.silence(96)] == [640 + 64]
    line.endpointer.set_complete(True)
    assert [at for at, _ in line.silence(320)] == [640 + 192]


def test_semantic_incomplete_turn_waits_for_patience():
    line = Line(ending="semantic", speculate_ms=192, silence_ms=512, max_silence_ms=1984)
    line.voice(640)
    line.silence(256)
    line.endpointer.set_complete(False)
    assert line.silence(2000)[0] == (640 + 1984, TurnEnded(samples(640)))


def test_semantic_without_judgement_uses_silence():
    line = Line(ending="semantic", speculate_ms=192, silence_ms=512)
    line.voice(640)
    assert [at for at, _ in line.silence(960)] == [640 + 192, 640 + 512]


def test_judgement_of_an_earlier_pause_does_not_count():
    line = Line(ending="semantic", speculate_ms=192, silence_ms=512)
    line.voice(640)
    line.silence(224)
    line.endpointer.set_complete(False)
    line.voice(640)
    line.endpointer.set_complete(True)  # comes too late: the pause is over
    start = line.now
    assert [at - start for at, _ in line.silence(960)] == [192, 512]


def test_idle_is_reported_after_silence():
    line = Line(idle_ms=960)
    line.endpointer.set_model_state("speaking")
    assert not line.silence(1920)
    line.endpointer.set_model_state("quiet")
    assert line.silence(1920) == [(1920 + 960, UserIdle(samples(1920))), (1920 + 1920, UserIdle(samples(2880)))]


def test_reset_ends_a_turn():
    line = Line()
    line.voice(320)
    line.endpointer.reset()
    assert not line.silence(960)
    assert names(line.voice(64)) == ["TurnStarted"]


def test_invalid_settings_name_the_field():
    for wrong in ({"threshold": 1.0}, {"silence_ms": -1}, {"idle_ms": 0}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            EndpointerSettings(**wrong)


def test_events_alternate_for_random_input():
    """Whatever is heard: begin, then pauses that end or are taken back."""
    follows = {
        None: {TurnStarted},
        TurnStarted: {TurnPaused},
        TurnPaused: {TurnResumed, TurnEnded},
        TurnResumed: {TurnPaused},
        TurnEnded: {TurnStarted, BargeIn},
        BargeIn: {TurnStarted},
    }
    line, last = Line(), None
    for i in range(4000):
        line.endpointer.set_model_state(("quiet", "thinking", "speaking")[(i * 7919 // 97) % 3])
        for _, action in line.play(BLOCK, ((i * 2654435761) >> 7) % 101 / 100 if i % 90 > 30 else 0.0):
            assert type(action) in follows[last]
            last = type(action)
    assert last is not None
