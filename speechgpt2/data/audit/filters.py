"""How many planted faults each filter finds.

    found = audit(clips=40)                    # synthetic voices, English and Mandarin
    print(table(found))

Each filter sees as many clips with its fault as without. The faults are as strong as those that the presets should
reject. A clip is rejected by the rule on the stage's score, as in a run. Recall: share of the faulty clips that are
rejected; precision: share of the rejected clips that are faulty.
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
    """The result of a filter: of `faulty` clips it rejected `hits`, of `clean` ones `misses`."""

    filter: str
    fault: str
    faulty: int
    hits: int
    clean: int
    misses: int

    @property
    def recall(self) -> float:
        """Share of the faulty clips that are rejected."""
        return self.hits / max(self.faulty, 1)

    @property
    def precision(self) -> float:
        """Share of the rejected clips that are faulty."""
        return self.hits / max(self.hits + self.misses, 1)


@dataclass(frozen=True)
class FilterCase:
    """A filter with its fault: `plant` makes a faulty sample from a clean one."""

    filter: str
    fault: str
    stage: Stage
    rule: Rule
    plant: Callable[[Sample, _FaultSource], Sample]
    needs_text: bool = False
    needs_voice: bool = False  # whispers have no period, so the filter cannot find them


class _FaultSource:
    """The random source of faults: numbers, and the other samples."""

    def __init__(self, samples: list[Sample], seed: int):
        self.samples, self.numbers = samples, np.random.default_rng(seed)

    def other(self, sample: Sample, same_language: bool = False) -> Sample:
        """Draw another sample with another text."""
        fitting = [s for s in self.samples if s is not sample and (not sample.text or s.text != sample.text)]
        if same_language:
            fitting = [s for s in fitting if s.lang == sample.lang and s.text]
        return fitting[int(self.numbers.integers(len(fitting)))]

    def alike(self, sample: Sample) -> Sample:
        """Draw one of the four samples with the most similar length of text, a mistake that is hard to find."""
        fitting = [s for s in self.samples if s.lang == sample.lang and s.text and s.text != sample.text]
        fitting.sort(key=lambda s: abs(len(s.text) - len(sample.text)))
        return fitting[int(self.numbers.integers(min(4, len(fitting))))]


def trials() -> list[FilterCase]:
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


def _noise(sample: Sample, drawn: _FaultSource) -> Sample:
    ratio, slope = drawn.numbers.uniform(0, 15), drawn.numbers.uniform(0, 1)
    return replace(sample, pcm=faults.noisy(sample.pcm, ratio, slope, drawn.numbers))


def _clip(sample: Sample, drawn: _FaultSource) -> Sample:
    return replace(sample, pcm=faults.clipped(sample.pcm, drawn.numbers.uniform(0.01, 0.1)))


def _band(sample: Sample, drawn: _FaultSource) -> Sample:
    return replace(sample, pcm=faults.narrow(sample.pcm, drawn.numbers.uniform(3400, 4000)))


def _voice(sample: Sample, drawn: _FaultSource) -> Sample:
    return replace(sample, pcm=faults.mixed(sample.pcm, drawn.other(sample).pcm, drawn.numbers.uniform(0, 6)))


def _music(sample: Sample, drawn: _FaultSource) -> Sample:
    tune = faults.tune(len(sample.pcm) / SAMPLE_RATE, drawn.numbers)
    return replace(sample, pcm=faults.mixed(sample.pcm, tune, drawn.numbers.uniform(0, 15)))


def _silence(sample: Sample, drawn: _FaultSource) -> Sample:
    half = len(sample.pcm) // 2
    pause = np.zeros(int(len(sample.pcm) * drawn.numbers.uniform(1.5, 3)), np.float32)
    return replace(sample, pcm=np.concatenate([sample.pcm[:half], pause, sample.pcm[half:]]))


def _language(sample: Sample, drawn: _FaultSource) -> Sample:
    return replace(sample, lang="en" if sample.lang == "zh" else "zh")


def _loop(sample: Sample, drawn: _FaultSource) -> Sample:
    return replace(sample, text=" ".join([sample.text] * int(drawn.numbers.integers(5, 12))))


def _text(sample: Sample, drawn: _FaultSource) -> Sample:
    return replace(sample, text=drawn.alike(sample).text)


def audit(clips: int, recordings: Path | None = None, seed: int = 0) -> list[FilterResult]:
    """Test every filter on `clips` synthetic samples and the recordings below a folder.

    Needs the engines of the voices.
    """
    samples = [*_synthetic(clips, seed), *(_recorded(recordings) if recordings is not None else ())]
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder), Path(folder))
        found = [_tried(trial, samples, workspace, seed + n) for n, trial in enumerate(trials())]
        return [*found, _duplicates(samples, workspace, seed)]


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
        beside = path.with_suffix(".txt")
        text = beside.read_text(encoding="utf-8").strip() if beside.is_file() else ""
        if len(pcm) >= 3 * SAMPLE_RATE:
            longest = len(pcm) if text else int(LONGEST * SAMPLE_RATE)
            yield Sample(pcm[:longest], text, "zh" if any("一" <= c <= "鿿" for c in text) else "en")


def _tried(trial: FilterCase, samples: list[Sample], workspace: Workspace, seed: int) -> FilterResult:
    used = [s for s in samples if (s.text or not trial.needs_text) and (s.voiced or not trial.needs_voice)]
    drawn = _FaultSource(used, seed)
    misses = sum(_rejects(trial, sample, workspace) for sample in used)
    hits = sum(_rejects(trial, trial.plant(sample, drawn), workspace) for sample in used)
    return FilterResult(trial.filter, trial.fault, len(used), hits, len(used), misses)


def _rejects(trial: FilterCase, sample: Sample, workspace: Workspace) -> bool:
    clip = _clip_of(sample, workspace, "sample")
    try:
        made = trial.stage(clip, ClipAudio(clip, workspace))
    except Rejected:
        return True
    made = made if isinstance(made, Clip) else made[0]
    return not trial.rule.allows(score_of(made, trial.rule.score))


def _clip_of(sample: Sample, workspace: Workspace, id: str) -> Clip:
    name, samples = workspace.add([sample.pcm])
    info = AudioInfo("", SAMPLE_RATE, 1, 0.0, samples / SAMPLE_RATE, "FLAC", name)
    return Clip(id, audio=info, text=ClipText(sample.text), lang=Language(sample.lang))


def _duplicates(samples: list[Sample], workspace: Workspace, seed: int) -> FilterResult:
    """Test duplicates: every sample once, and half of them again as another site might publish them."""
    drawn, fingerprint = _FaultSource(samples, seed), Fingerprint(FingerprintConfig())
    again = [replace(s, pcm=faults.retouched(s.pcm, drawn.numbers)) for s in samples[::2]]
    clips = [_clip_of(sample, workspace, f"{number:06d}") for number, sample in enumerate([*samples, *again])]
    marked = [fingerprint(clip, ClipAudio(clip, workspace)) for clip in clips]
    decided = list(Duplicates(DuplicatesConfig())(lambda: iter(marked)))
    misses = sum(not clip.kept for clip in decided[: len(samples)])
    hits = sum(not clip.kept for clip in decided[len(samples) :])
    return FilterResult("duplicates", "cut, recoded, other gain", len(again), hits, len(samples), misses)


def table(found: list[FilterResult]) -> str:
    """Format results as a Markdown table."""
    rows = [
        f"| {line.filter} | {line.fault} | {line.hits} of {line.faulty} | {line.misses} of {line.clean} "
        f"| {line.precision:.2f} | {line.recall:.2f} |"
        for line in found
    ]
    head = "| filter | planted | found | wrongly rejected | precision | recall |\n|---|---|---|---|---|---|"
    return "\n".join([head, *rows])
