"""Who is encoded, read and drawn: what is urgent, what goes along, what is put off."""

import pytest

from speechgpt2.engine.config import EngineConfig
from speechgpt2.engine.scheduler import PATCH, Need, Plan, schedule

CONFIG = EngineConfig(lead=0.6, pieces=2, patience=0.06)


def test_nothing_to_do():
    assert schedule([], CONFIG) == schedule([Need(0), Need(1)], CONFIG) == Plan()
    assert Plan().idle and Plan().wait is None


def test_sound_waits_for_company_but_not_for_long():
    assert schedule([Need(0, sound=True, waited=0.02)], CONFIG) == Plan(wait=pytest.approx(0.04))
    plan = schedule([Need(0, sound=True, waited=0.01), Need(1, sound=True, waited=0.06)], CONFIG)
    assert plan == Plan(encode=(0, 1))


def test_a_reply_is_drawn_until_its_listener_has_enough():
    assert schedule([Need(3, replying=True)], CONFIG).draw == (3,)
    assert schedule([Need(3, replying=True, lead=0.6)], CONFIG) == Plan(wait=pytest.approx(PATCH))
    assert schedule([Need(3, replying=True, lead=0.5)], CONFIG) == Plan(wait=pytest.approx(0.02))
    assert schedule([Need(3, replying=True, lead=0.48)], CONFIG).draw == (3,)


def test_speakers_share_a_step():
    """One that must is joined by those that may, so that all of them are due together from then on."""
    needs = [Need(0, replying=True, lead=0.4), Need(1, replying=True, lead=0.55), Need(2, replying=True, lead=0.6)]
    assert schedule(needs, CONFIG).draw == (0, 1)


def test_whoever_writes_does_not_wait_for_speakers():
    needs = [Need(0, replying=True, lead=0.4), Need(1, replying=True, writing=True), Need(2, sound=True, waited=0.01)]
    assert schedule(needs, CONFIG) == Plan(draw=(1,), urgent=True)
    overdue = Need(2, sound=True, waited=0.06)
    assert schedule([*needs[:2], overdue], CONFIG) == Plan(encode=(2,), draw=(1,), urgent=True)


@pytest.mark.parametrize("lead", [0.0, 0.19])
def test_a_speaker_who_is_pressed_takes_writers_along(lead):
    needs = [Need(0, replying=True, lead=lead), Need(1, replying=True, writing=True), Need(2, sound=True)]
    assert schedule(needs, CONFIG) == Plan(encode=(2,), draw=(0, 1), urgent=True)


def test_a_writer_who_is_not_read_does_not_write():
    needs = [Need(0, replying=True, lead=0.5), Need(1, replying=True, writing=True, lead=0.7)]
    assert schedule(needs, CONFIG) == Plan(wait=pytest.approx(0.02))


def test_sound_goes_along_with_a_step_that_happens_anyway():
    plan = schedule([Need(0, sound=True, waited=0.0), Need(1, replying=True)], CONFIG)
    assert plan == Plan(encode=(0,), draw=(1,), urgent=True)


def test_long_readings_are_rationed_and_those_whose_reply_is_awaited_go_first():
    needs = [Need(0, unread=90), Need(1, unread=50), Need(2, unread=300, replying=True), Need(3, unread=1)]
    plan = schedule(needs, CONFIG)
    assert plan.read == (1, 2, 3) and plan.draw == (2,)


def test_a_reply_that_has_to_read_first_is_urgent_however_much_sound_is_in_hand():
    assert schedule([Need(0, unread=5, replying=True, lead=0.6)], CONFIG).read == (0,)


@pytest.mark.parametrize(
    ("other", "urgent"),
    [
        (Need(1, unread=3), False),
        (Need(1, sound=True, waited=0.06), False),
        (Need(1, replying=True, lead=0.4), False),
        (Need(1, replying=True, lead=0.1), True),
        (Need(1, replying=True, writing=True), True),
        (Need(1, replying=True, unread=3), True),
    ],
)
def test_a_first_sound_is_not_held_up_but_by_those_who_are_pressed_too(other, urgent):
    first = Need(0, replying=True, lead=PATCH, awaited=True)
    assert schedule([first, other], CONFIG).urgent == urgent
