"""Random crops of a corpus with pitch and phones for codec training: clean audio, and an augmented copy as input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from speechgpt2.codec.crops import Crops
from speechgpt2.codec.validation import HeldOutSpeech
from speechgpt2.corpus.phones import PhoneSet
from speechgpt2.corpus.store import PAD_TO, Corpus, Record
from speechgpt2.dsp.world_pitch import F0_HOP
from speechgpt2.errors import UserError
from speechgpt2.tts.augment import augment_microphone
from speechgpt2.tts.voice_sets import VOICE_SETS
from speechgpt2.types import FRAME_RATE

GAIN_DB = (-10.0, 4.0)
SYNTHETIC = "synthetic"  # the source of records that state none
HELD_OUT = 16  # utterances of a validation
SHORTEST, LONGEST = 20 * PAD_TO, 150 * PAD_TO  # samples of held-out speech: STOI needs 0.5 s, 6 s bound the time


class _Crop(NamedTuple):
    pcm: np.ndarray
    f0: np.ndarray
    phones: np.ndarray
    text: str | None


class CorpusCrops:
    """Draws crops of whole frames from the training split. After the end of an utterance, another one follows.

    Utterances are drawn in proportion to their length, times the factors `favour` and `mix`.

    Args:
        favour: Factor of the assistant's voices.
        phones: The phone labels; None for those that occur often enough in the corpus.
        mix: Factor of each source: ``{"ljspeech": 3, "synthetic": 5}``.

    Raises:
        UserError: The mix names a source that the corpus does not have, or a weight below 0.
    """

    def __init__(
        self,
        corpus: Corpus,
        favour: float = 1.0,
        phones: Sequence[str] | None = None,
        mix: Mapping[str, float] | None = None,
    ):
        self.corpus = corpus
        self.records = [r for r in corpus.records if r.split == "train" and r.length]
        favoured = {
            (lang, voice.speaker)
            for voices in VOICE_SETS.values()
            for lang, assistant in voices.assistant.items()
            for voice in assistant
        }
        mix = mix or {}
        _check_mix(mix, {_source(r) for r in self.records})
        weights = [
            r.length * mix.get(_source(r), 1.0) * (favour if (r.lang, r.speaker) in favoured else 1.0)
            for r in self.records
        ]
        self.cumulative = np.cumsum(weights) / sum(weights)
        self.phone_set = PhoneSet((record.phones for record in self.records), phones)
        self.phones = self.phone_set.names

    def crops(self, random: np.random.Generator, batch: int, frames: int) -> Crops:
        """Draw `batch` crops of `frames` codec frames, each at a random gain."""
        rows = [self._crop(random, frames) for _ in range(batch)]
        gains = 10 ** (random.uniform(*GAIN_DB, size=(batch, 1)) / 20)
        pcm, f0, phones = (np.stack(values) for values in zip(*((row.pcm, row.f0, row.phones) for row in rows)))
        peak = np.abs(pcm).max(axis=1, keepdims=True).clip(min=1e-3)
        pcm = (pcm * np.minimum(gains, 0.99 / peak)).astype(np.float32)
        augmented = np.stack([augment_microphone(row, random) for row in pcm]).astype(np.float32)
        tensors = [torch.from_numpy(values) for values in (pcm, augmented, f0, phones)]
        return Crops(tensors[0], tensors[1], tensors[2], tensors[3], tuple(row.text for row in rows))

    def held_out(self, count: int = 0) -> list[HeldOutSpeech]:
        """Return the beginnings of `count` utterances (0: 16) that are not trained on, spread over the corpus."""
        records = [r for r in self.corpus.records if r.split == "test" and r.length >= SHORTEST]
        count = min(count or HELD_OUT, len(records))
        return [self._beginning(records[len(records) * i // count]) for i in range(count)]

    def _beginning(self, record: Record) -> HeldOutSpeech:
        pcm = torch.from_numpy(self.corpus.pcm(record)[:LONGEST].copy())
        return HeldOutSpeech(pcm, record.text if record.length <= LONGEST else "", record.lang)

    def _crop(self, random: np.random.Generator, frames: int) -> _Crop:
        segments, texts, missing = [], [], frames
        while missing:
            record = self.records[int(np.searchsorted(self.cumulative, random.random()))]
            available = record.length // PAD_TO
            first = int(random.integers(max(available - missing, 0) + 1))
            end = min(first + missing, available)
            pcm = self.corpus.pcm(record)[first * PAD_TO : end * PAD_TO]
            scale = PAD_TO // F0_HOP
            f0 = self.corpus.f0(record)[first * scale : end * scale]
            segments.append((pcm, f0, self.phone_set.labels(record.phones, available)[first:end]))
            texts.append(_text_between(record, first / FRAME_RATE, end / FRAME_RATE))
            missing -= end - first
        pcm, f0, labels = (np.concatenate(values) for values in zip(*segments))
        return _Crop(pcm, f0, labels, None if None in texts else " ".join(filter(None, texts)))


def _text_between(record: Record, start: float, end: float) -> str | None:
    """Return the words whose middle lies in a part of a record; None if the times of its words are unknown."""
    if not record.words:
        return None
    words = [word.text for word in record.words if start <= (word.start + word.end) / 2 < end]
    return ("" if record.lang == "zh" else " ").join(words)


def _source(record: Record) -> str:
    return record.extra.get("source", SYNTHETIC)


def _check_mix(mix: Mapping[str, float], sources: set[str]) -> None:
    for source, weight in mix.items():
        if source not in sources:
            raise UserError(f"mix: the corpus has no source {source!r}; it has {', '.join(sorted(sources))}")
        if not weight >= 0:
            raise UserError(f"mix: the weight of {source} must be at least 0, not {weight}")
