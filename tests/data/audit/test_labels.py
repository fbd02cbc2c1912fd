"""The audit on a few sentences: labels are near the truth, and a wrong text is told from a right one."""

from __future__ import annotations

import re

from speechgpt2.data.annotate.known_labels import label_synthetic
from speechgpt2.data.audit import labels as audit
from speechgpt2.data.record import Clip, Label
from speechgpt2.tts.alignment.synthesis_aligner import REFERENCE_VOICES
from speechgpt2.tts.voices import speak
from tests import needs


def rows(lines, start):
    """Cells of the table whose head begins with `start`, by the first cell's text."""
    first = next(number for number, line in enumerate(lines) if line.startswith(f"| {start}"))
    table = {}
    for line in lines[first + 2 :]:
        if not line.startswith("|"):
            break
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        table[name] = cells
    return table


@needs.extra("synthesis", "pyworld")
@needs.voice(*REFERENCE_VOICES.values(), *audit.FLITE)
def test_labels_are_near_the_truth():
    lines = list(audit.audit(sentences=1, seed=5))
    times = rows(lines, "words' boundaries of")
    voices = ("en, espeak", "en, flite", "zh, espeak")
    assert set(times) == {f"{who}{how}" for who in voices for how in ("", audit.NOISY)}
    for heading, (middle, _, near, _) in times.items():
        assert float(middle) < 50 and float(near) > 0.5, heading
    assert float(re.search(r"higher in ([\d.]+) %", "\n".join(lines)).group(1)) > 90
    styles = rows(lines, "style")
    assert set(styles) == set(audit.EXPECTED_PHRASES)
    assert min(float(share) for share, _, _ in styles.values()) >= 0.75
    speeds = [line for line in lines if "× real time" in line]
    assert [line.split(":")[0] for line in speeds] == ["`align`", "`prosody`"]


@needs.voice(REFERENCE_VOICES["zh"])
def test_synthetic_speech_gets_ground_truth_labels():
    spoken = speak("你好吗？", REFERENCE_VOICES["zh"])
    clip = label_synthetic(Clip("x"), spoken)
    assert [word.text for word in clip.align.words] == ["你", "好", "吗"]
    assert "".join(tone.label for tone in clip.align.tones)[-1] in "015"
    assert clip.labels_from["align"] == Label("espeak", confidence=1.0, kind="truth")
    assert clip.speakers[0].id == "espeak/cmn-latn-pinyin+m3" and clip.lang.code == "zh"
    assert Clip.from_json(clip.to_json()) == clip
