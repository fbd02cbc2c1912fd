"""Does the sound say the text: the path's cost against a plain reference, and right and wrong texts in real voices."""

from __future__ import annotations

import numpy as np
import pytest

from speechgpt2.data.audit import filters as audit
from speechgpt2.data.clean.text_match import BAND, TextMatch, TextMatchConfig, warping_cost
from speechgpt2.data.pipeline.clip_audio import ClipAudio, Workspace
from speechgpt2.data.record import AudioInfo, Clip, ClipText, Language
from speechgpt2.tts.utterance import Voice
from speechgpt2.tts.voices import speak
from speechgpt2.types import SAMPLE_RATE
from tests import needs


def plain_cost(a: np.ndarray, b: np.ndarray) -> float:
    n, m = len(a), len(b)
    cost = np.full((n, m), np.inf)
    for i in range(n):
        for j in range(m):
            if abs(i - int((i + j) * n / (n + m - 1))) > BAND * max(n, m) / 2 + 2:
                continue
            d = float(np.linalg.norm(a[i] - b[j]))
            ways = [cost[i - 1, j] + d if i else np.inf, cost[i, j - 1] + d if j else np.inf]
            ways.append(cost[i - 1, j - 1] + 2 * d if i and j else np.inf)
            cost[i, j] = d if i == j == 0 else min(ways)
    return cost[-1, -1] / (n + m)


def test_cost_is_that_of_the_best_path():
    rng = np.random.default_rng(0)
    for n, m in ((40, 40), (40, 35), (33, 40)):
        a, b = rng.standard_normal((n, 3)).cumsum(0), rng.standard_normal((m, 3)).cumsum(0)
        assert warping_cost(a, b) == pytest.approx(plain_cost(a, b), rel=0.05)
    assert warping_cost(a, a) == pytest.approx(0, abs=1e-4)


VOICES = {"en": Voice("espeak", "linda", "en", "en"), "zh": Voice("espeak", "linda", "zh", "cmn-latn-pinyin")}


@needs.voice(*VOICES.values())
@pytest.mark.parametrize(
    ("lang", "right", "wrong"),
    [
        ("en", "The children walked along the river in the evening.", "Nobody had ever seen such a big yellow boat."),
        ("zh", "今天下午我们一起去公园散步。", "昨天晚上他在家里看了一本书。"),
    ],
)
def test_right_and_wrong_texts(lang, right, wrong, tmp_path):
    voice = VOICES[lang]
    workspace = Workspace(tmp_path, tmp_path)
    name, samples = workspace.add_recording([speak(right, voice).pcm])
    audio = AudioInfo("", SAMPLE_RATE, 1, 0.0, samples / SAMPLE_RATE, "FLAC", name)
    scores = []
    for text in (right, wrong):
        clip = Clip("a", audio=audio, text=ClipText(text), lang=Language(lang))
        scores.append(TextMatch(TextMatchConfig())(clip, ClipAudio(clip, workspace)).quality.extra["text_mismatch"])
    assert scores[0] < 0.925 < scores[1]


def test_other_languages_are_left_alone(tmp_path):
    clip = Clip("a", text=ClipText("bonjour"), lang=Language("fr"))
    assert TextMatch(TextMatchConfig())(clip, ClipAudio(clip, Workspace(tmp_path, tmp_path))) == clip


@pytest.mark.slow
@needs.voice(Voice("flite", "kal16", "en"), Voice("espeak", "f2", "zh", "cmn-latn-pinyin"))
def test_audit_finds_what_it_plants():
    for line in audit.audit(clips=20, seed=7):
        assert line.recall >= 0.85 and line.precision >= 0.85, line
