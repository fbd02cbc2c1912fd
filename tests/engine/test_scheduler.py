"""The scheduler: what is urgent, what joins a step, what is postponed."""

import pytest

from speechgpt2.engine import scheduler
from speechgpt2.engine.config import EngineConfig
from speechgpt2.engine.scheduler import SlotStatus, StepPlan
from speechgpt2.errors import UserError

PATCH_SECONDS = 0.12
CONFIG = EngineConfig(buffer_seconds=0.6, prefill_chunks_per_step=2, batching_delay=0.06)


def schedule(*slots):
    return scheduler.schedule(slots, CONFIG, PATCH_SECONDS)


def speaking(slot, buffered=0.0, **status):
    return SlotStatus(slot, generating=True, buffered_seconds=buffered, **status)


def writing(slot, buffered=0.0):
    return speaking(slot, buffered, writing=True)


def audio(slot, waited=0.0):
    return SlotStatus(slot, audio_ready=True, audio_waited=waited)


def wait(seconds):
    return StepPlan(wait=pytest.approx(seconds))


def test_nothing_to_do():
    assert schedule() == schedule(SlotStatus(0), SlotStatus(1)) == StepPlan()
    assert StepPlan().idle and StepPlan().wait is None


def test_audio_waits_to_share_a_step_but_not_for_long():
    assert schedule(audio(0, 0.02)) == wait(0.04)
    assert schedule(audio(0, 0.01), audio(1, 0.06)) == StepPlan(encode=(0, 1))


def test_a_reply_is_generated_until_its_buffer_is_full():
    assert schedule(speaking(3)).sample == (3,)
    assert schedule(speaking(3, 0.6)) == wait(PATCH_SECONDS)
    assert schedule(speaking(3, 0.5)) == wait(0.02)
    assert schedule(speaking(3, 0.48)).sample == (3,)


def test_speaking_slots_share_a_step():
    """One that must is joined by those that may, so that all of them are due together from then on."""
    assert schedule(speaking(0, 0.4), speaking(1, 0.55), speaking(2, 0.6)).sample == (0, 1)


def test_a_writing_slot_does_not_wait_for_speaking_ones():
    assert schedule(speaking(0, 0.4), writing(1), audio(2, 0.01)) == StepPlan(sample=(1,), urgent=True)
    overdue = audio(2, 0.06)
    assert schedule(speaking(0, 0.4), writing(1), overdue) == StepPlan(encode=(2,), sample=(1,), urgent=True)


@pytest.mark.parametrize("buffered", [0.0, 0.19])
def test_writing_slots_join_a_pressed_speaking_one(buffered):
    plan = schedule(speaking(0, buffered), writing(1), audio(2))
    assert plan == StepPlan(encode=(2,), sample=(0, 1), urgent=True)


def test_a_writing_slot_whose_audio_is_not_read_waits():
    assert schedule(speaking(0, 0.5), writing(1, 0.7)) == wait(0.02)


def test_audio_joins_a_step_that_happens_anyway():
    assert schedule(audio(0), speaking(1)) == StepPlan(encode=(0,), sample=(1,), urgent=True)


def test_long_prefills_are_limited_and_awaited_replies_go_first():
    long = [SlotStatus(0, pending_patches=90), SlotStatus(1, pending_patches=50)]
    plan = schedule(*long, speaking(2, pending_patches=300), SlotStatus(3, pending_patches=1))
    assert plan.prefill == (1, 2, 3) and plan.sample == (2,)


def test_a_reply_that_has_to_prefill_is_urgent_whatever_its_buffer():
    assert schedule(speaking(0, 0.6, pending_patches=5)).prefill == (0,)


@pytest.mark.parametrize(
    ("other", "urgent"),
    [
        (SlotStatus(1, pending_patches=3), False),
        (audio(1, 0.06), False),
        (speaking(1, 0.4), False),
        (speaking(1, 0.1), True),
        (writing(1), True),
        (speaking(1, pending_patches=3), True),
    ],
)
def test_latency_critical_audio_is_held_up_only_by_pressed_slots(other, urgent):
    first = speaking(0, PATCH_SECONDS, latency_critical=True)
    assert schedule(first, other).urgent == urgent


def test_prefill_chunks_suit_the_device():
    def chosen(device, width, **config):
        config = EngineConfig(**config).for_device(device, width)
        return config.prefill_chunk_size, config.prefill_chunks_per_step

    assert chosen("cpu", 896) == (32, 4) and chosen("cpu", 3584) == (128, 1) and chosen("cuda", 896) == (128, 8)
    assert chosen("cuda", 896, prefill_chunk_size=16) == (16, 8)
    assert chosen("cpu", 3584, prefill_chunks_per_step=2) == (128, 2)


@pytest.mark.parametrize(
    "wrong", [{"prefill_chunk_size": 0}, {"prefill_chunk_size": 1}, {"prefill_chunks_per_step": 0}]
)
def test_chunks_that_are_too_small_are_refused(wrong):
    with pytest.raises(UserError, match="prefill_chunk_size"):
        EngineConfig(**wrong)
