"""The errors of labels, on speech with known labels: the tables in docs/data.md.

    python -m speechgpt2.data.audit.labels

Times and rates: sentences by voices other than the aligner's reference voice, clean, and in a room with noise. Pitch: a
buzz through formants along a known melody.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from speechgpt2.curriculum.sentences import sentence
from speechgpt2.data.annotate.align import AGREEMENT, Align, AlignConfig
from speechgpt2.data.annotate.caption import Captions, CaptionsConfig
from speechgpt2.data.annotate.known_labels import label_synthetic
from speechgpt2.data.annotate.prosody import MeasureProsody, ProsodyConfig, spoken
from speechgpt2.data.conversations.script import STYLES, SpeakingStyle
from speechgpt2.data.conversations.speaking_style import apply_style
from speechgpt2.data.pipeline.clip_audio import ClipAudio, Workspace
from speechgpt2.data.record import AudioInfo, Clip, Speaker
from speechgpt2.dsp import autocorrelation_pitch
from speechgpt2.dsp import world_pitch as other_pitch
from speechgpt2.dsp.world_pitch import F0_HOP
from speechgpt2.tts import augment
from speechgpt2.tts.espeak import MANDARIN
from speechgpt2.tts.utterance import Alignment, Utterance, Voice
from speechgpt2.tts.voices import HELD_OUT_VOICES, speak
from speechgpt2.types import SAMPLE_RATE

MAX_ERROR = 0.05  # seconds: the largest error of a correct boundary
VOWELS = frozenset("aeiouyɑɐɒæɔəɚɛɜɝɤɨɪøœɯʊʌɵᵻ")
FLITE = tuple(Voice("flite", name, "en") for name in ("slt", "rms", "awb"))
NOISY = ", room and 15 dB SNR"
FORMANTS = ((500.0, 80.0), (1500.0, 120.0), (2500.0, 160.0))  # centre and width in Hz


@dataclass(frozen=True)
class Case:
    """An utterance, and the heading under which it counts."""

    heading: str
    spoken: Utterance


def cases(sentences: int, seed: int = 0) -> Iterator[Case]:
    """Yield `sentences` by each of a few voices, clean and augmented."""
    rng = random.Random(seed)
    for lang, voices in _voices().items():
        for voice in voices:
            for _ in range(sentences):
                clean = speak(sentence(rng, lang), voice)
                heading = f"{lang}, {voice.engine}"
                yield Case(heading, clean)
                pcm = augment.add_reverb(clean.pcm, 0.3, 0.3, np.random.default_rng(rng.getrandbits(32)))
                noisy = augment.add_noise(pcm, 15.0, 0.5, np.random.default_rng(rng.getrandbits(32)))
                yield Case(heading + NOISY, replace(clean, pcm=noisy.astype(np.float32)))


def _voices() -> dict[str, tuple[Voice, ...]]:
    espeak = [voice for voice in HELD_OUT_VOICES["en"] if voice.engine == "espeak"][:3]
    mandarin = [Voice("espeak", voice.name, "zh", MANDARIN, rate=rate) for voice, rate in zip(espeak, (180, 210, 240))]
    return {"en": (*FLITE, *espeak), "zh": tuple(mandarin)}


def audit(sentences: int = 6, seed: int = 0) -> Iterable[str]:
    """Yield the tables as lines of Markdown."""
    times: dict[str, list[float]] = defaultdict(list)
    rates: dict[str, list[float]] = defaultdict(list)
    right, wrong, clock = [], [], _Clock()
    with tempfile.TemporaryDirectory() as folder:
        workspace, before = Workspace(Path(folder), Path(folder)), ""
        for case in cases(sentences, seed):
            truth, clip_audio = _clip(case.spoken, workspace)
            blank = replace(truth, align=Alignment(), labels_from={})
            aligned = clock(Align(AlignConfig()), blank, clip_audio)
            times[case.heading] += _boundary_errors(aligned, truth)
            right.append(aligned.quality.extra[AGREEMENT])
            if before and before != truth.text.raw:
                other = replace(blank, text=replace(blank.text, raw=_with_length_of(truth.text.raw, before)))
                wrong.append(Align(AlignConfig())(other, clip_audio).quality.extra[AGREEMENT])
            before = truth.text.raw
            true_rate = _rate(truth)
            for name, clip in (("from text", aligned), ("from peaks", blank)):
                rate = clock(MeasureProsody(ProsodyConfig()), clip, clip_audio).prosody.rate
                rates[f"{case.heading.removesuffix(NOISY)} | {name}"].append(abs((rate or 0) / true_rate - 1))
    yield from _table_of_times(times, right, wrong)
    yield from _table_of_rates(rates)
    yield from _table_of_pitch()
    yield from _table_of_captions(4 * sentences, seed)
    yield from clock.lines()


def _clip(utterance: Utterance, workspace: Workspace) -> tuple[Clip, ClipAudio]:
    name, samples = workspace.add_recording([utterance.pcm])
    info = AudioInfo("", SAMPLE_RATE, 1, 0.0, samples / SAMPLE_RATE, "FLAC", name)
    clip = label_synthetic(Clip("audited", audio=info), utterance)
    return clip, ClipAudio(clip, workspace)


def _with_length_of(other: str, text: str) -> str:
    """Repeat or cut `text` to about the length of `other`, so that its length does not reveal a wrong text."""
    units = text.split() if " " in other else list(text)
    count = len(other.split()) if " " in other else len(other)
    return (" " if " " in other else "").join((units * (count // max(len(units), 1) + 1))[:count])


def _boundary_errors(aligned: Clip, truth: Clip) -> list[float]:
    """Return the errors of word boundaries in seconds; 1 for all of them if the words differ."""
    if [word.text for word in aligned.align.words] != [word.text for word in truth.align.words]:
        return [1.0] * (2 * len(truth.align.words))
    pairs = zip(aligned.align.words, truth.align.words)
    return [abs(gap) for a, b in pairs for gap in (a.start - b.start, a.end - b.end)]


def _rate(truth: Clip) -> float:
    """Return syllables per second by the synthesiser's own phones; characters in Mandarin."""
    seconds = sum(end - start for start, end in spoken(truth.align, ProsodyConfig().shortest_pause))
    vowels = sum(bool(VOWELS & set(phone.label)) for phone in truth.align.phones)
    return (len(truth.align.words) if truth.lang.code == "zh" else vowels) / seconds


def _table_of_times(times: dict[str, list[float]], right: list[float], wrong: list[float]) -> Iterator[str]:
    yield "| words' boundaries of | median, ms | 90 %, ms | within 50 ms | boundaries |"
    yield "|---|---|---|---|---|"
    for heading, gaps in sorted(times.items()):
        median, high = 1000 * np.quantile(gaps, (0.5, 0.9))
        yield f"| {heading} | {median:.0f} | {high:.0f} | {np.mean(np.array(gaps) < MAX_ERROR):.2f} | {len(gaps)} |"
    order = np.mean(np.subtract.outer(right, wrong) > 0)
    yield ""
    yield (
        f"Agreement of audio and text: {np.median(right):.2f} for the right text, {np.median(wrong):.2f} for a wrong "
        f"one of its length; the right one's is higher in {100 * order:.1f} % of {len(right)} × {len(wrong)} pairs."
    )
    yield ""


def _table_of_rates(rates: dict[str, list[float]]) -> Iterator[str]:
    yield "| syllables per second of | counted | median error, % | within 10 % | within 20 % | clips |"
    yield "|---|---|---|---|---|---|"
    for heading, errors in sorted(rates.items()):
        within = [np.mean(np.array(errors) <= share) for share in (0.1, 0.2)]
        yield f"| {heading} | {100 * np.median(errors):.1f} | {within[0]:.2f} | {within[1]:.2f} | {len(errors)} |"
    yield ""


def melody(low: float, high: float, seconds: float = 4.0) -> tuple[np.ndarray, np.ndarray]:
    """Return a buzz through formants, whose pitch glides between `low` and `high` Hz.

    Returns:
        The audio `pcm [N]`, and its pitch `[N]`, 0 in pauses.
    """
    at = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    hertz = low * (high / low) ** (0.5 - 0.5 * np.cos(2 * np.pi * 0.7 * at))
    sounding = (at % 1.0) < 0.75
    phase = np.cumsum(hertz) / SAMPLE_RATE
    pulses = np.diff(np.floor(phase), prepend=0.0) * sounding
    spectrum = np.fft.rfft(pulses)
    f = np.fft.rfftfreq(len(pulses), 1 / SAMPLE_RATE)
    for centre, width in FORMANTS:
        spectrum *= centre**2 / (centre**2 - f**2 + 1j * f * width)
    pcm = np.fft.irfft(spectrum / (1 + 1j * f / 100), len(pulses))
    return (0.3 * pcm / np.abs(pcm).max()).astype(np.float32), hertz * sounding


def _table_of_pitch() -> Iterator[str]:
    yield "| pitch, Hz | SNR, dB | tracker | median error, % | off by more than 20 %, % | voicing wrong, % |"
    yield "|---|---|---|---|---|---|"
    for low, high in ((80.0, 160.0), (150.0, 300.0), (250.0, 450.0)):
        for snr in (40.0, 10.0):
            pcm, hertz = melody(low, high)
            noisy = augment.add_noise(pcm, snr, 0.5, np.random.default_rng(0)).astype(np.float32)
            for name, track_pitch in (
                ("autocorrelation", autocorrelation_pitch.track_pitch),
                ("WORLD", other_pitch.track_pitch),
            ):
                cells = 100 * np.array(_pitch_errors(track_pitch(noisy), hertz))
                row = " | ".join((f"{low:.0f}…{high:.0f}", f"{snr:.0f}", name, *(f"{cell:.2g}" for cell in cells)))
                yield f"| {row} |"
    yield ""


def _pitch_errors(track: np.ndarray, hertz: np.ndarray) -> tuple[float, float, float]:
    """Return the median error, the share of errors above 20 %, and the share of wrong voicing."""
    truth = hertz[np.minimum(np.arange(len(track)) * F0_HOP, len(hertz) - 1)]
    both = (track > 0) & (truth > 0)
    error = np.abs(track[both] / truth[both] - 1)
    return float(np.median(error)), float(np.mean(error > 0.2)), float(np.mean((track > 0) != (truth > 0)))


EXPECTED_PHRASES = {
    "fast": "faster than usual", "slow": "more slowly than usual", "high": "higher pitch", "low": "lower pitch",
    "loud": "louder than usual", "soft": "more softly", "flat": "flatter melody", "whisper": "whisper",
}  # fmt: skip


def _table_of_captions(readings: int, seed: int) -> Iterator[str]:
    """Yield how many captions name the style of a reading, beside twenty plain readings by the same speaker."""
    plain = max(20, readings)
    voices = [voice for group in _voices().values() for voice in group if voice.engine == "espeak"]
    hits: dict[str, list[bool]] = defaultdict(list)
    false_alarms: dict[str, list[bool]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        for voice in (voices[0], voices[-1]):
            rng = random.Random(seed)
            styles = [*("plain",) * plain, *(name for name in EXPECTED_PHRASES for _ in range(readings // 4))]
            clips = [_read_in_style(style, voice, rng, Workspace(Path(folder), Path(folder))) for style in styles]
            for style, clip in zip(styles, Captions(CaptionsConfig())(lambda clips=clips: iter(clips))):  # type: ignore[misc]
                for name, words in EXPECTED_PHRASES.items():
                    if style in (name, "plain"):
                        (hits if style == name else false_alarms)[name].append(words in clip.style.caption_en)
    yield "| style | named by the caption | named for plain readings | readings |"
    yield "|---|---|---|---|"
    for name in EXPECTED_PHRASES:
        yield f"| {name} | {np.mean(hits[name]):.2f} | {np.mean(false_alarms[name]):.2f} | {len(hits[name])} |"
    yield ""


def _read_in_style(style: str, voice: Voice, rng: random.Random, workspace: Workspace) -> Clip:
    utterance = speak(sentence(rng, voice.lang), apply_style(voice, STYLES.get(style, SpeakingStyle())))
    clip, clip_audio = _clip(utterance, workspace)
    aligned = Align(AlignConfig())(replace(clip, align=Alignment(), labels_from={}), clip_audio)
    measured = MeasureProsody(ProsodyConfig())(aligned, clip_audio)
    return replace(measured, speakers=(Speaker(voice.speaker),))  # the whisper counts as the same speaker


class _Clock:
    """Runs stages, and sums the process time of each."""

    def __init__(self) -> None:
        self._spent: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def __call__(self, stage: Align | MeasureProsody, clip: Clip, clip_audio: ClipAudio) -> Clip:
        begun = time.process_time()
        output = stage(clip, clip_audio)
        spent = self._spent[stage.name]
        spent[0] += time.process_time() - begun
        spent[1] += clip.audio.duration
        assert isinstance(output, Clip)
        return output

    def lines(self) -> Iterator[str]:
        for name, (seconds, audio) in sorted(self._spent.items()):
            yield f"`{name}`: {audio / seconds:.0f} × real time on one core ({audio:.0f} s of speech)."


if __name__ == "__main__":
    for line in audit():
        print(line, flush=True)
