"""The word judge: its grammar, its counting, and that it hears what flite says."""

from __future__ import annotations

import shutil

import pytest

from speechgpt2.eval.recognise import Recogniser, errors, word_pair_arcs
from speechgpt2.tts.voices import ASSISTANT_VOICES, speak

SUMS = [
    f"{a} plus {b} is {c}".split()
    for a, b, c in (("three", "five", "eight"), ("two", "four", "six"), ("one", "seven", "nine"))
]


def test_errors():
    assert errors(["a", "b", "c"], ["a", "b", "c"]) == 0
    assert errors(["a", "b", "c"], ["a", "x", "c"]) == 1
    assert errors(["a", "b"], []) == 2
    assert errors([], ["a"]) == 1
    assert errors(["a", "b", "c"], ["b", "c", "d"]) == 2


def test_grammar_holds_the_word_pairs_and_no_others():
    arcs = word_pair_arcs([["a", "b"], ["b", "c"]])
    state = {arc[3]: arc[1] for arc in arcs if len(arc) == 4}
    pairs = {(start, arc[3] if len(arc) == 4 else None) for arc in arcs for start in [arc[0]]}
    assert pairs == {(0, "a"), (0, "b"), (state["a"], "b"), (state["b"], None), (state["b"], "c"), (state["c"], None)}
    leaving_b = [arc[2] for arc in arcs if arc[0] == state["b"]]
    assert leaving_b == [0.5, 0.5]


def test_hears_what_flite_says():
    pytest.importorskip("pocketsphinx")
    if not shutil.which("flite"):
        pytest.skip("flite is not installed")
    judge = Recogniser(SUMS)
    for sentence in ("Three plus five is eight.", "One plus four is nine."):
        assert judge.hear(speak(sentence, ASSISTANT_VOICES["en"]).pcm) == sentence.lower().rstrip(".").split()
    assert not judge.knows(["three", "plus", "gloobstick"])
