"""Rules: bounds, unknown scores, all scores on record, and rules that make no sense."""

from __future__ import annotations

import pytest

from speechgpt2 import config
from speechgpt2.data.pipeline.global_steps import Rule, Rules, RulesConfig, score_of
from speechgpt2.data.record import Clip, ClipText, Decision, Quality
from speechgpt2.errors import UserError


def checked(clip: Clip, *rules: Rule) -> Clip:
    [made] = Rules(RulesConfig(rules=rules))(lambda: iter([clip]))
    return made


@pytest.mark.parametrize(("snr", "keep"), [(9.9, False), (10.0, True), (30.0, True), (30.1, False), (None, True)])
def test_bounds(snr, keep):
    clip = Clip("a", quality=Quality(snr=snr))
    rules = Rule("noisy", "quality.snr", at_least=10.0), Rule("too-clean", "quality.snr", at_most=30.0)
    assert checked(clip, *rules).kept == keep


def test_first_rule_gives_the_reason_and_all_add_scores():
    clip = Clip("a", quality=Quality(snr=1.0, mos={"x": 2.0}))
    made = checked(clip, Rule("noisy", "quality.snr", at_least=10.0), Rule("bad", "quality.mos.x", at_least=3.0))
    assert made.rejection.reason == "noisy"
    assert [(d.reason, d.score, d.threshold, d.keep) for d in made.decisions] == [
        ("noisy", 1.0, 10.0, False), ("bad", 2.0, 3.0, False),
    ]  # fmt: skip


def test_unknown_score_may_reject():
    assert not checked(Clip("a"), Rule("unjudged", "quality.mos.dnsmos", at_least=3.0, unknown="reject")).kept


def test_rejected_clips_are_not_checked_again():
    clip = Clip("a", decisions=(Decision("x", 1, False),))
    assert checked(clip, Rule("noisy", "quality.snr", at_least=10.0, unknown="reject")) == clip


@pytest.mark.parametrize("path", ["quality.snrr", "quality", "text.raw", "quality.mos", "text", "nothing"])
def test_unknown_score_path_is_a_user_error(path):
    with pytest.raises(UserError, match=r"score|number"):
        score_of(Clip("a", text=ClipText("x")), path)


@pytest.mark.parametrize("bounds", [{}, {"at_least": 1, "at_most": 2}])
def test_rule_has_one_bound(bounds):
    with pytest.raises(UserError, match="either at_least or at_most"):
        config.from_dict(Rule, {"reason": "x", "score": "quality.snr", **bounds})
