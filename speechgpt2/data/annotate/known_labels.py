"""Labels of synthetic speech, as ground truth that no later stage replaces."""

from __future__ import annotations

from dataclasses import replace

from speechgpt2.data.record import Clip, ClipText, Label, Language, Speaker
from speechgpt2.tts.utterance import Alignment, Utterance, tones_of

DIGITS = 4  # of a time in seconds: a tenth of a millisecond


def label_synthetic(clip: Clip, spoken: Utterance) -> Clip:
    """Add the text, language, speaker and times of the utterance that a clip contains from its first sample on."""
    words = tuple(w._replace(start=round(w.start, DIGITS), end=round(w.end, DIGITS)) for w in spoken.words)
    phones = tuple(p._replace(start=round(p.start, DIGITS), end=round(p.end, DIGITS)) for p in spoken.phones)
    label = Label(spoken.voice.engine, confidence=1.0, kind="truth")
    return replace(
        clip,
        text=ClipText(raw=spoken.text),
        lang=Language(spoken.lang, 1.0),
        speakers=(Speaker(spoken.voice.speaker),),
        align=Alignment(words, phones, tones_of(phones)),
        labels_from={**clip.labels_from, **dict.fromkeys(("text", "lang", "speakers", "align"), label)},
    )
