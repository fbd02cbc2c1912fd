"""How many planted faults does each filter find?

    results = audit(clips=40)                  # synthetic voices, English and Mandarin
    print(table(results))

Each filter gets as many clips with its fault as without. The faults are as strong as those that the presets should
reject. As in a run, a rule on the stage's score rejects a clip. Recall is the share of the faulty clips that are
rejected; precision is the share of the rejected clips that are faulty.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from speechgpt2 import audio
from speechgpt2.curriculum.sentences import sentence
from speechgpt2.data.audit import faults
from speechgpt2.data.clean.duplicates import Duplicates, DuplicatesConfig, Fingerprint, FingerprintConfig
from speechgpt2.data.clean.quality import MeasureQuality, QualityConfig
from speechgpt2.data.clean.segment import Segment, SegmentConfig
from speechgpt2.data.clean.text_match import TextMatch, TextMatchConfig
from speechgpt2.data.clean.transcript_checks import CheckTranscript, TranscriptConfig
from speechgpt2.data.pipeline.clip_audio import ClipAudio, Workspace
from speechgpt2.data.pipeline.global_steps import Rule, score_of
from speechgpt2.data.pipeline.stage import Rejected, Stage
from speechgpt2.data.record import AudioInfo, Clip, ClipText, Language
from speechgpt2.tts.voices import draw_voice, speak
from speechgpt2.types import SAMPLE_RATE

AUDIO_ENDINGS = {".wav", ".flac", ".mp3", ".ogg"}
LONGEST = 12.0  # seconds of a recording that are used


@dataclass(frozen=True)
class Sample:
    """Clean speech `pcm [N]`, its text (empty if unknown) and language, and whether it is voiced (not whispered)."""

    pcm: np.ndarray
    text: str
    lang: str
    voiced: bool = True


@dataclass(frozen=True)
class FilterResult:
    """The result of a filter: it rejected `hits` of `faulty` clips, and `false_alarms` of `clean` ones."""

    filter: str
    fault: str
    faulty: int
    hits: int
    clean: int
    false_alarms: int

    @property
    def recall(self) -> float:
        """Share of the faulty clips that are rejected."""
        return self.hits / max(self.faulty, 1)

    @property
    def precision(self) -> float:
        """Share of the rejected clips that are faulty."""
        return self.hits / max(self.hits + self.false_alarms, 1)


@dataclass(frozen=True)
class FilterCase:
    """A filter with its fault: `plant` makes a faulty sample from a clean one."""

    filter: str
    fault: str
    stage: Stage
    rule: Rule
    plant: Callable[[Sample, _FaultSource], Sample]
    needs_text: bool = False
    needs_voice: bool = False  # a whisper has no period, so the filter cannot find the fault in it


class _FaultSource:
    """The random source of faults: numbers, and the other samples."""

    def __init__(self, samples: list[Sample], seed: int):
        self.samples, self.numbers = samples, np.random.default_rng(seed)

    def other(self, sample: Sample, same_language: bool = False) -> Sample:
        """Draw another sample with another text."""
        candidates = [s for s in self.samples if s is not sample and (not sample.text or s.text != sample.text)]
        if same_language:
            candidates = [s for s in candidates if s.lang == sample.lang and s.text]
        return candidates[int(self.numbers.integers(len(candidates)))]

    def similar_length(self, sample: Sample) -> Sample:
        """Draw one of the four samples whose texts are closest in length, so that the wrong text is hard to find."""
        candidates = [s for s in self.samples if s.lang == sample.lang and s.text and s.text != sample.text]
        candidates.sort(key=lambda s: abs(len(s.text) - len(sample.text)))
        return candidates[int(self.numbers.integers(min(4, len(candidates))))]


def filter_cases() -> list[FilterCase]:
    """Return every default filter with its fault; thresholds are those of the preset tts-strict."""
    quality = MeasureQuality(QualityConfig())
    return [
        FilterCase("snr", "noise 0…15 dB below the speech", quality,
                   Rule("noisy", "quality.snr", at_least=20.0), _noise),
        FilterCase("clipping", "1…10 % of samples cut", quality,
                   Rule("clipped", "quality.clipping", at_most=0.005), _clip),
        FilterCase("bandwidth", "a telephone line", quality, Rule("narrow", "quality.bandwidth", at_least=7e3), _band),
        FilterCase(
            "overlap", "another voice 0…6 dB below", quality, Rule("overlap", "quality.overlap", at_most=0.014), _voice,
            needs_voice=True,
        ),
        FilterCase("music", "music 0…15 dB below", quality, Rule("music", "quality.music", at_most=0.15), _music),
        FilterCase(
            "silence", "pauses of more than half of it", Segment(SegmentConfig(gap=60.0)),
            Rule("silence", "quality.silence", at_most=0.5), _silence,
        ),
        FilterCase(
            "language", "declared as another one", CheckTranscript(TranscriptConfig()),
            Rule("language", "quality.extra.language_mismatch", at_most=0.0), _language, needs_text=True,
        ),
        FilterCase(
            "repeats", "a recogniser's loop", CheckTranscript(TranscriptConfig()),
            Rule("repeats", "quality.extra.repeats", at_most=3.0), _loop, needs_text=True,
        ),
        FilterCase(
            "text", "another sentence, about as long", TextMatch(TextMatchConfig()),
            Rule("wrong-text", "quality.extra.text_mismatch", at_most=0.925), _text, needs_text=True,
        ),
    ]  # fmt: skip


def _noise(sample: Sample, source: _FaultSource) -> Sample:
    ratio, slope = source.numbers.uniform(0, 15), source.numbers.uniform(0, 1)
    return replace(sample, pcm=faults.noisy(sample.pcm, ratio, slope, source.numbers))


def _clip(sample: Sample, source: _FaultSource) -> Sample:
    return replace(sample, pcm=faults.clipped(sample.pcm, source.numbers.uniform(0.01, 0.1)))


def _band(sample: Sample, source: _FaultSource) -> Sample:
    return replace(sample, pcm=faults.narrow(sample.pcm, source.numbers.uniform(3400, 4000)))


def _voice(sample: Sample, source: _FaultSource) -> Sample:
    return replace(sample, pcm=faults.mixed(sample.pcm, source.other(sample).pcm, source.numbers.uniform(0, 6)))


def _music(sample: Sample, source: _FaultSource) -> Sample:
    tune = faults.tune(len(sample.pcm) / SAMPLE_RATE, source.numbers)
    return replace(sample, pcm=faults.mixed(sample.pcm, tune, source.numbers.uniform(0, 15)))


def _silence(sample: Sample, source: _FaultSource) -> Sample:
    half = len(sample.pcm) // 2
    pause = np.zeros(int(len(sample.pcm) * source.numbers.uniform(1.5, 3)), np.float32)
    return replace(sample, pcm=np.concatenate([sample.pcm[:half], pause, sample.pcm[half:]]))


def _language(sample: Sample, source: _FaultSource) -> Sample:
    return replace(sample, lang="en" if sample.lang == "zh" else "zh")


def _loop(sample: Sample, source: _FaultSource) -> Sample:
    return replace(sample, text=" ".join([sample.text] * int(source.numbers.integers(5, 12))))


def _text(sample: Sample, source: _FaultSource) -> Sample:
    return replace(sample, text=source.similar_length(sample).text)


def audit(clips: int, recordings: Path | None = None, seed: int = 0) -> list[FilterResult]:
    """Test every filter on `clips` synthetic samples and the recordings below a folder.

    Needs the engines of the voices.
    """
    samples = [*_synthetic(clips, seed), *(_recorded(recordings) if recordings is not None else ())]
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder), Path(folder))
        results = [_test(case, samples, workspace, seed + n) for n, case in enumerate(filter_cases())]
        return [*results, _duplicates(samples, workspace, seed)]


def _synthetic(count: int, seed: int) -> Iterator[Sample]:
    rng = random.Random(f"audit/{seed}")
    for number in range(count):
        lang = ("en", "zh")[number % 2]
        text = (" " if lang == "en" else "").join(sentence(rng, lang) for _ in range(2))
        voice = draw_voice(lang, rng)
        yield Sample(speak(text, voice).pcm, text, lang, "whisper" not in voice.name)


def _recorded(folder: Path) -> Iterator[Sample]:
    """Yield recordings of at least three seconds; their text is in a `.txt` file beside them, or unknown."""
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_ENDINGS):
        pcm = audio.load(path)
        text_file = path.with_suffix(".txt")
        text = text_file.read_text(encoding="utf-8").strip() if text_file.is_file() else ""
        if len(pcm) >= 3 * SAMPLE_RATE:
            longest = len(pcm) if text else int(LONGEST * SAMPLE_RATE)
            yield Sample(pcm[:longest], text, "zh" if any("一" <= c <= "鿿" for c in text) else "en")


def _test(case: FilterCase, samples: list[Sample], workspace: Workspace, seed: int) -> FilterResult:
    used = [s for s in samples if (s.text or not case.needs_text) and (s.voiced or not case.needs_voice)]
    source = _FaultSource(used, seed)
    false_alarms = sum(_rejects(case, sample, workspace) for sample in used)
    hits = sum(_rejects(case, case.plant(sample, source), workspace) for sample in used)
    return FilterResult(case.filter, case.fault, len(used), hits, len(used), false_alarms)


def _rejects(case: FilterCase, sample: Sample, workspace: Workspace) -> bool:
    clip = _clip_of(sample, workspace, "sample")
    try:
        output = case.stage(clip, ClipAudio(clip, workspace))
    except Rejected:
        return True
    measured = output if isinstance(output, Clip) else output[0]
    return not case.rule.allows(score_of(measured, case.rule.score))


def _clip_of(sample: Sample, workspace: Workspace, id: str) -> Clip:
    name, samples = workspace.add_recording([sample.pcm])
    info = AudioInfo("", SAMPLE_RATE, 1, 0.0, samples / SAMPLE_RATE, "FLAC", name)
    return Clip(id, audio=info, text=ClipText(sample.text), lang=Language(sample.lang))


def _duplicates(samples: list[Sample], workspace: Workspace, seed: int) -> FilterResult:
    """Test duplicates: every sample once, and half of them again as another site might publish them."""
    source, fingerprint = _FaultSource(samples, seed), Fingerprint(FingerprintConfig())
    copies = [replace(s, pcm=faults.retouched(s.pcm, source.numbers)) for s in samples[::2]]
    clips = [_clip_of(sample, workspace, f"{number:06d}") for number, sample in enumerate([*samples, *copies])]
    fingerprinted = [fingerprint(clip, ClipAudio(clip, workspace)) for clip in clips]
    decided = list(Duplicates(DuplicatesConfig())(lambda: iter(fingerprinted)))
    false_alarms = sum(not clip.kept for clip in decided[: len(samples)])
    hits = sum(not clip.kept for clip in decided[len(samples) :])
    return FilterResult("duplicates", "cut, recoded, other gain", len(copies), hits, len(samples), false_alarms)


def table(results: list[FilterResult]) -> str:
    """Format results as a Markdown table."""
    rows = [
        f"| {result.filter} | {result.fault} | {result.hits} of {result.faulty} "
        f"| {result.false_alarms} of {result.clean} | {result.precision:.2f} | {result.recall:.2f} |"
        for result in results
    ]
    head = "| filter | planted | found | wrongly rejected | precision | recall |\n|---|---|---|---|---|---|"
    return "\n".join([head, *rows])
