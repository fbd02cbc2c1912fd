"""Checks of the transcript: its language, the speaking rate, repeats, the agreement of recognisers.

The script decides the language. This recognises Chinese, Japanese, Korean, Russian and Arabic, but cannot distinguish
languages in Latin letters: such a text counts as the declared language, or English. A plug-in can do more.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

import numpy as np

from speechgpt2.asr import edit_distance
from speechgpt2.data.pipeline.clip_audio import ClipAudio
from speechgpt2.data.pipeline.global_steps import GlobalStep, ReadClips
from speechgpt2.data.pipeline.stage import Stage
from speechgpt2.data.record import Clip, Language

NGRAM = 10  # words, or Chinese characters: the length of a recogniser's loop
MIN_CLIPS = 8  # clips that quartiles need
Quartiles = tuple[float, float]  # the first and the third
SCRIPTS = (
    ("ja", re.compile(r"[぀-ヿ]")),
    ("ko", re.compile(r"[가-힣]")),
    ("zh", re.compile(r"[㐀-鿿]")),
    ("ru", re.compile(r"[Ѐ-ӿ]+")),
    ("ar", re.compile(r"[؀-ۿ]+")),
    ("latin", re.compile(r"[A-Za-zÀ-ɏ]+")),
)
NOT_LATIN = {"ja", "ko", "zh", "yue", "ru", "ar"}  # languages that are not written in Latin letters


def normalised(text: str) -> str:
    """Lower case, compatible forms, no punctuation, single spaces."""
    plain = unicodedata.normalize("NFKC", text).lower()
    characters = (c if c.isalnum() or c == "'" or unicodedata.category(c).startswith("M") else " " for c in plain)
    return " ".join("".join(characters).split())


def units(text: str) -> list[str]:
    """The words of a text; in scripts without spaces, its characters."""
    return re.findall(r"[぀-ヿ㐀-鿿가-힣]|[^\s぀-ヿ㐀-鿿가-힣]+", normalised(text))


def language_of(text: str, declared: str = "") -> Language:
    """Return the language by the script of most characters, with their share as confidence.

    A word in Latin letters counts as one character.
    """
    counts = {code: len(pattern.findall(text)) for code, pattern in SCRIPTS}
    total = sum(counts.values())
    if not total:
        return Language(declared)
    if counts["ja"] and counts["zh"]:  # kana among hanzi
        counts["ja"] += counts.pop("zh")
    code = max(counts, key=lambda name: counts[name])
    share = round(counts[code] / total, 3)
    base = declared.split("-")[0].lower()
    if code == "latin":
        return Language(declared if base and base not in NOT_LATIN else "en", share)
    return Language(declared if base == code or (base == "yue" and code == "zh") else code, share)


def repeats(text: str, length: int = NGRAM) -> int:
    """Return how often the most frequent run of `length` units occurs."""
    words = units(text)
    runs = Counter(tuple(words[i : i + length]) for i in range(len(words) - length + 1))
    return max(runs.values(), default=0)


def error_rate(text: str, other: str) -> float:
    """Edit distance in units, divided by the length of the longer text, 0…1."""
    a, b = units(text), units(other)
    if not a or not b:
        return float(bool(a) != bool(b))
    return edit_distance(a, b) / max(len(a), len(b))


def disagreement(texts: Sequence[str]) -> float | None:
    """Return the mean error rate between all pairs of texts; None for fewer than two."""
    pairs = [(a, b) for i, a in enumerate(texts) for b in texts[i + 1 :]]
    return float(np.mean([error_rate(a, b) for a, b in pairs])) if pairs else None


@dataclass(frozen=True)
class TranscriptConfig:
    """Options of `CheckTranscript`: none."""

    kind: Literal["transcript"] = "transcript"


class CheckTranscript(Stage[TranscriptConfig]):
    """Measures the transcript.

    Sets `text.cer` (disagreement of transcript and hypotheses), and in `quality.extra` "repeats",
    "characters_per_second" and "language_mismatch" (1 if the script is not that of the declared language).
    """

    version = 1

    def __call__(self, clip: Clip, clip_audio: ClipAudio) -> Clip:
        """Return the clip with new fields."""
        text = clip.text.raw or next(iter(clip.text.hypotheses), "")
        if not text:
            return clip
        norm, lang = normalised(text), language_of(text, clip.lang.code)
        extra = {
            **clip.quality.extra,
            "repeats": float(repeats(text)),
            "characters_per_second": round(len(norm.replace(" ", "")) / max(clip.audio.duration, 0.01), 3),
            "language_mismatch": float(bool(clip.lang.code) and clip.lang.code != lang.code),
        }
        cer = disagreement([version for version in (clip.text.raw, *clip.text.hypotheses) if version])
        return replace(
            clip,
            lang=lang if not clip.lang.code else clip.lang,
            text=replace(clip.text, norm=norm, cer=clip.text.cer if cer is None else round(cer, 4)),
            quality=replace(clip.quality, extra=extra),
        )


@dataclass(frozen=True)
class RateOutliersConfig:
    """Options of `RateOutliers`: none."""

    kind: Literal["rate_outliers"] = "rate_outliers"


class RateOutliers(GlobalStep[RateOutliersConfig]):
    """Sets `quality.extra.rate_outlier`: how far a clip's speaking rate is outside of the quartiles.

    The quartiles are those of its recording, or of its language for recordings with few clips. The distance is in
    interquartile ranges; it is 0 within them. Emilia (He et al. 2024) drops clips above 1.5.
    """

    version = 1

    def __call__(self, read: ReadClips) -> Iterator[Clip]:
        """Yield the clips with new fields or decisions."""
        recordings, languages = self._fit(read)
        for clip in read():
            rate = _rate(clip)
            quartiles = recordings.get(clip.parent_id or clip.id) or languages.get(clip.lang.code)
            if rate is None or quartiles is None:
                yield clip
                continue
            low, high = quartiles
            outside = max(low - rate, rate - high, 0.0) / max(high - low, 0.1)
            extra = {**clip.quality.extra, "rate_outlier": round(outside, 4)}
            yield replace(clip, quality=replace(clip.quality, extra=extra))

    def _fit(self, read: ReadClips) -> tuple[dict[str, Quartiles], dict[str, Quartiles]]:
        """Return the quartiles of recordings and of languages with enough clips."""
        recordings: dict[str, Quartiles] = {}
        languages: dict[str, array[float]] = defaultdict(lambda: array("d"))  # eight bytes a clip
        for name, clips in groupby(read(), lambda clip: clip.parent_id or clip.id):
            rates = array("d")
            for clip in clips:
                rate = _rate(clip)
                if rate is not None:
                    rates.append(rate)
                    languages[clip.lang.code].append(rate)
            if len(rates) >= MIN_CLIPS:
                recordings[name] = _quartiles(rates)
        return recordings, {code: _quartiles(rates) for code, rates in languages.items() if len(rates) >= MIN_CLIPS}


def _rate(clip: Clip) -> float | None:
    """Return the characters per second of a kept clip."""
    return clip.quality.extra.get("characters_per_second") if clip.kept else None


def _quartiles(values: array[float]) -> Quartiles:
    low, high = np.percentile(values, (25, 75))
    return float(low), float(high)
