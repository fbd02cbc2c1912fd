"""Words, phones and tones found where a synthesiser put them; what cannot be aligned; what must not be touched."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from speechgpt2.data.annotate.align import Align, AlignConfig
from speechgpt2.data.pipeline.clip_audio import ClipAudio, Workspace
from speechgpt2.data.record import AudioInfo, Clip, ClipText, Label, Language
from speechgpt2.errors import UserError
from speechgpt2.tts.alignment import isolated_espeak
from speechgpt2.tts.alignment.align import align_emissions
from speechgpt2.tts.alignment.emissions import Emissions, TokenSpan
from speechgpt2.tts.alignment.synthesis_aligner import REFERENCE_VOICES
from speechgpt2.tts.espeak import MANDARIN
from speechgpt2.tts.utterance import Alignment, Phone, Voice, Word, tones_of
from speechgpt2.tts.voices import speak
from speechgpt2.types import SAMPLE_RATE
from tests import needs

ENGLISH = "I bought seven green apples at the market yesterday, and then I went home."
MANDARIN_TEXT = "今天我去学校看朋友，他送给我一本书。"


@pytest.fixture
def ingest(tmp_path):
    """A function pcm -> (audio, sound) of a standard recording."""

    def add(pcm):
        workspace = Workspace(tmp_path, tmp_path)
        name, samples = workspace.add_recording([pcm])
        info = AudioInfo("", SAMPLE_RATE, 1, 0.0, samples / SAMPLE_RATE, "FLAC", name)
        return info, ClipAudio(Clip("x", audio=info), workspace)

    return add


def test_times_and_agreement_follow_from_the_path():
    log_probs = np.log(np.array([[8, 1, 1], [1, 8, 1], [1, 8, 1], [8, 1, 1], [1, 4, 5]]) / 10)
    words, phones = (TokenSpan("a", 0, 1), TokenSpan("b", 1, 2)), (TokenSpan("a1", 0, 1), TokenSpan("t", 1, 2))
    found, agreement = align_emissions(Emissions(log_probs, 0.02, [1, 2], words, phones, start=0.1))
    assert found.words == (Word("a", 0.12, 0.16), Word("b", 0.18, 0.2))
    assert found.tones == (Phone("1", 0.12, 0.16),)
    assert agreement == 1.0
    worse, less = align_emissions(Emissions(log_probs, 0.02, [2, 1], words, phones))
    assert less == pytest.approx((1 / 8 + 1 + 1) / 3) and len(worse.words) == 2


VOICES = [
    Voice("flite", "rms", "en"),
    Voice("espeak", "f2", "en", "en", rate=150),
    Voice("espeak", "f2", "zh", MANDARIN, rate=220),
]


@pytest.mark.parametrize("voice", [pytest.param(v, marks=needs.voice(v, REFERENCE_VOICES[v.lang])) for v in VOICES])
def test_word_times_match_those_of_the_synthesiser(voice, ingest):
    text = MANDARIN_TEXT if voice.lang == "zh" else ENGLISH
    spoken = speak(text, voice)
    info, clip_audio = ingest(spoken.pcm)
    clip = Clip("x", audio=info, text=ClipText(raw=text), lang=Language(voice.lang))
    found = Align(AlignConfig())(clip, clip_audio)
    assert [word.text for word in found.align.words] == [word.text for word in spoken.words]
    errors = [abs(a.start - b.start) for a, b in zip(found.align.words, spoken.words)]
    assert np.median(errors) < 0.04 and np.quantile(errors, 0.8) < 0.1
    assert len(found.align.tones) == (len(spoken.words) if voice.lang == "zh" else 0)
    assert found.labels_from["align"] == Label("synthesis-aligner-2", "1", found.quality.extra["alignment"])
    assert Clip.from_json(found.to_json()) == found
    other = MANDARIN_TEXT[::-1] if voice.lang == "zh" else "How long does this journey take?"
    wrong = Align(AlignConfig())(replace(clip, text=ClipText(raw=other)), clip_audio)
    assert wrong.quality.extra["alignment"] < found.quality.extra["alignment"] - 0.05


@needs.voice(REFERENCE_VOICES["en"])
def test_pause_belongs_to_no_word(ingest):
    first, second = (speak(text, REFERENCE_VOICES["en"]) for text in ("I bought seven books", "and then I went home"))
    pcm = np.concatenate([first.pcm, np.zeros(SAMPLE_RATE, np.float32), second.pcm])
    info, clip_audio = ingest(pcm)
    clip = Clip("x", audio=info, text=ClipText(raw=f"{first.text} {second.text}"), lang=Language("en"))
    words = Align(AlignConfig())(clip, clip_audio).align.words
    assert words[3].text == "books" and words[3].end == pytest.approx(first.words[3].end, abs=0.06)
    assert words[4].start == pytest.approx(first.duration + 1 + second.words[0].start, abs=0.06)


@needs.voice(REFERENCE_VOICES["en"])
def test_unalignable_text_scores_zero(ingest):
    noise = 0.1 * np.random.default_rng(0).standard_normal(SAMPLE_RATE // 4)
    info, clip_audio = ingest(noise)
    clip = Clip("x", audio=info, text=ClipText(raw=ENGLISH), lang=Language("en"))
    for odd in (
        clip,  # seven seconds of words in a quarter of a second
        replace(clip, lang=Language("fr")),
        replace(clip, lang=Language("zh")),  # no reading for Latin letters
        replace(clip, text=ClipText(raw="…")),
    ):
        found = Align(AlignConfig())(odd, clip_audio)
        assert found.quality.extra == {"alignment": 0.0} and found.align == Alignment() and not found.labels_from
    silent, clip_audio = ingest(np.zeros(SAMPLE_RATE))
    assert Align(AlignConfig())(replace(clip, audio=silent), clip_audio).quality.extra["alignment"] == 0.0


class Broken:
    id = "broken-1"

    def __call__(self, pcm, text, lang):
        raise AssertionError("nobody should have asked")


def test_ground_truth_and_clips_without_text_stay_unchanged():
    stage, clip_audio = Align(AlignConfig(), Broken()), ClipAudio(Clip("x"), None)
    known = Alignment(words=(Word("so", 0.1, 0.3),))
    truth = Clip("x", text=ClipText(raw="so"), align=known, labels_from={"align": Label("espeak", kind="truth")})
    assert stage(truth, clip_audio) is truth
    assert stage(Clip("x"), clip_audio) == Clip("x")
    assert stage.key(truth) != Align(AlignConfig()).key(truth)  # another model, another result


@needs.voice(REFERENCE_VOICES["en"])
def test_isolated_synthesis_does_not_depend_on_earlier_texts():
    first = isolated_espeak.synthesize("hello", REFERENCE_VOICES["en"])
    for text in ("a", "something longer that leaves a trace"):
        isolated_espeak.synthesize(text, REFERENCE_VOICES["en"])
        again = isolated_espeak.synthesize("hello", REFERENCE_VOICES["en"])
        assert again.pcm.tobytes() == first.pcm.tobytes() and again.phones == first.phones
    with pytest.raises(UserError, match="no Mandarin reading"):
        isolated_espeak.synthesize("ABC", REFERENCE_VOICES["zh"])
    assert isolated_espeak.synthesize("hello", REFERENCE_VOICES["en"]).phones == first.phones  # the helper goes on
    isolated_espeak._process()._process.kill()
    isolated_espeak._process()._process.wait()
    assert isolated_espeak.synthesize("hello", REFERENCE_VOICES["en"]).phones == first.phones


def test_tones_are_read_from_vowels():
    assert tones_of([Phone("n", 0, 1), Phone("i3", 1, 2), Phone("a", 2, 3)]) == (Phone("3", 1, 2),)
