"""A corpus that needs no voices: eight words, each of which is a tone, for runs that only show that training works.

It has an example of every task: exchanges, texts to speak and to transcribe, a dialogue with a tool, and plain text.
The test split holds the same kinds of items.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speechgpt2.corpus.store import META, Corpus, CorpusItem, CorpusWriter, Record
from speechgpt2.dsp.world_pitch import F0_HOP
from speechgpt2.tts.utterance import Phone, Word
from speechgpt2.types import SAMPLE_RATE

WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight")
WORD_SECONDS, PAUSE_SECONDS = 0.28, 0.04
LOWEST, STEP = 110.0, 20.0  # Hz: the first word's pitch, and the distance of the words' pitches
HARMONICS = 10
NOISE = 0.01  # its level, so that no band of the spectrum is empty, as in a recording
SPLITS = {"train": 8, "test": 2}  # items of each kind
LAMP = {"name": "lamp", "description": "Switch a lamp.", "parameters": {"type": "object"}}


def tone_corpus(folder: Path) -> Corpus:
    """Return the corpus, which is written to `folder` at the first call."""
    if (folder / META).exists():
        return Corpus.open(folder)
    writer = CorpusWriter(folder, {"kind": "tones"})
    writer.write_part(0, (item for split in SPLITS for item in _items(split)))
    return writer.finish(1)


def _items(split: str) -> Iterator[CorpusItem]:
    for i in range(SPLITS[split]):
        name = f"{split}-{i}"
        asked, said = [i, i + 1, i + 2], [i + 1, i + 2]
        yield _spoken(f"{name}-q", asked, split, "user", {"exchange": name, "typed": []})
        yield _spoken(f"{name}-a", said, split, "assistant", {"exchange": name})
        yield _spoken(f"{name}-say", range(i, i + 6), split, "assistant", {"skill": "say"})
        yield _spoken(f"{name}-hear", [i, i + 3], split, "user", {"skill": "dictation"})
        yield CorpusItem(Record(f"{name}-text", _text(range(i, i + 8)), "en", role="text", split=split))
        yield from _tool_dialogue(name, split)


def _tool_dialogue(name: str, split: str) -> Iterator[CorpusItem]:
    """Yield the turns of a typed dialogue that calls a tool."""
    turns: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("user", "Light on.", {"tools": [LAMP], "system": ""}),
        ("assistant", "", {"tool_calls": [{"name": "lamp", "arguments": "{}"}]}),
        ("tool", "on", {}),
        ("assistant", "It is on.", {}),
    )
    for number, (role, text, extra) in enumerate(turns):
        common = {"conversation": f"{name}-tool", "channel": int(role == "assistant"), "cut": False}
        record = Record(f"{name}-tool-{number}", text, "en", role=role, split=split, extra={**common, **extra})
        yield CorpusItem(record)


def _spoken(id: str, words: Sequence[int], split: str, role: str, extra: dict) -> CorpusItem:
    """Return an utterance of words, given by their numbers."""
    count = round((WORD_SECONDS + PAUSE_SECONDS) * SAMPLE_RATE)
    pcm = np.concatenate([_tone(number, count) for number in words])
    f0 = np.repeat([_pitch(number) for number in words], count // F0_HOP)
    starts = [i * count / SAMPLE_RATE for i in range(len(words))]
    timed = [(WORDS[number % len(WORDS)], start, start + WORD_SECONDS) for number, start in zip(words, starts)]
    record = Record(
        id, _text(words), "en", speaker=role, voice=role, role=role, split=split, extra=extra,
        words=tuple(Word(*word) for word in timed), phones=tuple(Phone(*word) for word in timed),
    )  # fmt: skip
    return CorpusItem(record, pcm, f0)


def _tone(number: int, count: int) -> np.ndarray:
    """Return a word and the pause after it, float32 [count]: a harmonic tone whose loudest partial tells the word."""
    n, word = np.arange(count), number % len(WORDS)
    voiced = n < WORD_SECONDS * SAMPLE_RATE
    partials = np.arange(1, HARMONICS + 1)[:, None]
    gains = np.exp(-0.5 * np.square(partials - 1 - word))
    wave = (gains * np.sin(2 * np.pi * partials * _pitch(number) * n / SAMPLE_RATE)).sum(0)
    noise = NOISE * np.random.default_rng(word).standard_normal(count)
    return (0.2 * wave * voiced * np.minimum(1.0, n / 480) + noise).astype(np.float32)


def _pitch(number: int) -> float:
    return LOWEST + STEP * (number % len(WORDS))


def _text(words: Sequence[int]) -> str:
    return " ".join(WORDS[number % len(WORDS)] for number in words)
