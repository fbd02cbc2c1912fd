"""PocketSphinx: its grammar, free English speech, and what flite says within a domain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from speechgpt2 import audio
from speechgpt2.asr.pocketsphinx import PocketSphinx, word_pair_arcs
from speechgpt2.errors import UserError
from speechgpt2.tts.voices import Voice, speak
from tests import needs

QUESTION = Path(__file__).parents[2] / "examples" / "question-1.wav"  # "What is three plus five?"
SLT = Voice("flite", "slt", "en")
SUMS = [
    f"{a} plus {b} is {c}".split()
    for a, b, c in (("three", "five", "eight"), ("two", "four", "six"), ("one", "seven", "nine"))
]


def test_grammar_holds_the_word_pairs_and_no_others():
    arcs = word_pair_arcs([["a", "b"], ["b", "c"]])
    state = {arc[3]: arc[1] for arc in arcs if len(arc) == 4}
    pairs = {(start, arc[3] if len(arc) == 4 else None) for arc in arcs for start in [arc[0]]}
    assert pairs == {(0, "a"), (0, "b"), (state["a"], "b"), (state["b"], None), (state["b"], "c"), (state["c"], None)}
    leaving_b = [arc[2] for arc in arcs if arc[0] == state["b"]]
    assert leaving_b == [0.5, 0.5]


@needs.extra("eval", "pocketsphinx")
def test_free_speech_has_words_with_times():
    pcm = audio.load(QUESTION)
    result = PocketSphinx().transcribe(pcm, "en")
    assert result.text == "what is three plus five" == " ".join(word.text for word in result.words)
    times = [time for word in result.words for time in (word.start, word.end)]
    assert times == sorted(times) and times[0] >= 0 and times[-1] <= len(pcm) / 24_000 + 0.1
    assert PocketSphinx().transcribe(np.zeros(0, np.float32), "en").text == ""
    with pytest.raises(UserError, match="does not recognise the language 'zh'"):
        PocketSphinx().transcribe(pcm, "zh")


@needs.extra("eval", "pocketsphinx")
@needs.voice(SLT)
def test_domain_is_recognised_as_flite_says_it():
    recogniser = PocketSphinx(SUMS)
    for sentence in ("Three plus five is eight.", "One plus four is nine."):
        assert recogniser.transcribe(speak(sentence, SLT).pcm, "en").text == sentence.lower().rstrip(".")
    assert not recogniser.knows(["three", "plus", "gloobstick"])
