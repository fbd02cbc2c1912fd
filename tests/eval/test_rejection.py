"""Inputs without a question: what they are, and what counts as a rejection."""

from __future__ import annotations

import numpy as np
import pytest

from speechgpt2.curriculum.texts import read
from speechgpt2.eval import rejection
from speechgpt2.tts.voices import HELD_OUT_VOICES
from speechgpt2.types import TextDelta


@pytest.mark.parametrize(
    ("reply", "rejected"),
    [
        ("", True),
        (" …", True),
        ("Sorry, I did not understand that.", True),
        ("I didn’t catch that.", True),
        ("对不起，我没听懂。", True),
        ("我听不清。", True),
        ("Three plus five is eight.", False),
        ("我不知道。", False),
    ],
)
def test_only_no_answer_and_not_understanding_are_rejections(reply, rejected):
    assert rejection.is_rejection(reply) is rejected


def test_every_kind_has_a_row(monkeypatch):
    monkeypatch.setattr(
        rejection.voices, "speak", lambda text, voice: type("Said", (), {"pcm": np.ones(240, np.float32)})
    )
    drawn = rejection.draw_inputs(per_kind=3)
    assert set(drawn) == {"silence", "noise", "music", "another language"}
    for kind in ("silence", "noise", "music"):
        levels = [20 * np.log10(np.sqrt(np.mean(wave**2))) for wave in drawn[kind]]
        assert all(wave.dtype == np.float32 and np.abs(wave).max() <= 1 for wave in drawn[kind])
        assert all(-76 < level < -74 if kind == "silence" else -50 < level < -19 for level in levels)
        again = rejection.draw_inputs(per_kind=3)[kind]
        assert all(np.array_equal(a, b) for a, b in zip(drawn[kind], again))

    class Model:
        """Answers whatever is louder than silence."""

        def chat(self, turns, mode, stream):
            assert mode == "s2t"
            if np.abs(turns[-1].segments[0].pcm).max() > 0.01:
                yield TextDelta("Four.")

    rows = {row.kind: (row.n, row.rejected) for row in rejection.rejection_rows(Model(), drawn)}
    assert rows["silence"] == (3, 1.0) and rows["another language"] == (3, 0.0)
    assert {voice.engine for voice in HELD_OUT_VOICES["zh"]} == {"espeak"}  # its names speak any language


def test_no_foreign_sentence_is_one_of_the_training():
    taught = read("limits")["foreign"]
    asked = {text for sentences in rejection.FOREIGN.values() for text in sentences}
    assert asked.isdisjoint(text for sentences in taught.values() for text in sentences)
    assert set(rejection.FOREIGN) - set(taught)  # languages that the training does not hold
