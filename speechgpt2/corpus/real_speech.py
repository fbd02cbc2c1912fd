"""Real recordings as corpus items: local copies of LJ Speech, spoken digits and Mandarin words.

    ljspeech/*.flac + transcripts.csv    fsdd/{digit}_{speaker}_{take}.wav
    cmn/words/cmn-{hanzi}.mp3            cmn/syllables/cmn-{pinyin}.mp3
    orders/*.ogg                         people ordering coffee, without transcripts

Any of the folders may be absent. The names of the files determine the test split.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr

from speechgpt2.corpus.store import CorpusItem, Record
from speechgpt2.curriculum.numbers import ONES
from speechgpt2.dsp.levels import active_span, normalise_level
from speechgpt2.dsp.world_pitch import track_pitch
from speechgpt2.tts.utterance import Word
from speechgpt2.types import SAMPLE_RATE

_LJ_FIRST_TEST = "LJ001-0080"
_FSDD_TEST_SPEAKERS = ("lucas", "theo", "yweweler")
_LICENCES = {"ljspeech": "CC-PDM-1.0", "orders": "Apache-2.0"}  # of the others: CC-BY-SA-4.0
_TEST_PERCENT = 5  # of the Mandarin words and syllables, and of the orders


@dataclass(frozen=True)
class Recording:
    """A file and its transcript, "" if there is none; ``text`` of a syllable is its pinyin."""

    path: Path
    text: str
    lang: str
    source: str
    speaker: str
    split: str


def find_recordings(root: Path) -> list[Recording]:
    """Return all recordings below `root`, in a stable order. Raises FileNotFoundError if there are none."""
    recordings = [
        *_ljspeech(root / "ljspeech"), *_digits(root / "fsdd"), *_mandarin(root / "cmn"), *_orders(root / "orders"),
    ]  # fmt: skip
    if not recordings:
        raise FileNotFoundError(f"{root} has none of ljspeech/, fsdd/, cmn/, orders/")
    return recordings


def load_recording(recording: Recording, pitch: bool = True) -> CorpusItem | None:
    """Read, resample, trim and level a recording, with its pitch if `pitch` is true; None if it is silent.

    A single word gets the whole span as its time, and the characters of a Mandarin word get equal parts of it.
    """
    import soundfile

    pcm, rate = soundfile.read(recording.path, dtype="float32", always_2d=True)
    mono = soxr.resample(pcm.mean(axis=1), rate, SAMPLE_RATE, quality="HQ")
    span = active_span(mono, floor_db=-40.0)
    if span is None:
        return None
    mono = normalise_level(mono[span[0] : span[1]])
    record = Record(
        f"{recording.source}-{recording.path.stem}", recording.text, recording.lang,
        speaker=recording.speaker, voice=recording.speaker, split=recording.split,
        words=_words(recording, mono), licence=_LICENCES.get(recording.source, "CC-BY-SA-4.0"),
        source=recording.source, extra={"source": recording.source},
    )  # fmt: skip
    return CorpusItem(record, mono, track_pitch(mono) if pitch else None)


def _words(recording: Recording, pcm: np.ndarray) -> tuple[Word, ...]:
    """Return the words of a recording of a single word; none for others."""
    texts = {"fsdd": [recording.text], "cmn-words": list(recording.text)}.get(recording.source)
    span = active_span(pcm)
    if texts is None or span is None:
        return ()
    edge = 0.05 * SAMPLE_RATE
    start, end = min(span[0] + edge, span[1]), max(span[1] - edge, span[0] + edge)
    edges = [round(float(at) / SAMPLE_RATE, 3) for at in np.linspace(start, end, len(texts) + 1)]
    return tuple(Word(*fields) for fields in zip(texts, edges, edges[1:]))


def _ljspeech(folder: Path) -> Iterator[Recording]:
    table = folder / "transcripts.csv"
    for line in table.read_text(encoding="utf-8").splitlines() if table.exists() else ():
        name, *_, text = line.split("|")
        path = folder / f"{name}.flac"
        if path.exists():
            split = "test" if name >= _LJ_FIRST_TEST else "train"
            yield Recording(path, text, "en", "ljspeech", "real/ljspeech", split)


def _digits(folder: Path) -> Iterator[Recording]:
    for path in sorted(folder.glob("*.wav")):
        digit, speaker, _ = path.stem.split("_")
        split = "test" if speaker in _FSDD_TEST_SPEAKERS else "train"
        yield Recording(path, ONES[int(digit)], "en", "fsdd", f"real/fsdd-{speaker}", split)


def _mandarin(folder: Path) -> Iterator[Recording]:
    for kind in ("words", "syllables"):
        for path in sorted((folder / kind).glob("cmn-*.mp3")):
            text = path.stem.removeprefix("cmn-")
            if text.startswith("_"):  # interjections outside the syllabary: hm, ng
                continue
            split = "test" if zlib.crc32(text.encode()) % 100 < _TEST_PERCENT else "train"
            yield Recording(path, text, "zh", f"cmn-{kind}", f"real/cmn-{kind}", split)


def _orders(folder: Path) -> Iterator[Recording]:
    for path in sorted(folder.rglob("*.ogg")):
        split = "test" if zlib.crc32(path.stem.encode()) % 100 < _TEST_PERCENT else "train"
        yield Recording(path, "", "en", "orders", "real/orders", split)
