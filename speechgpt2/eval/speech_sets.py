"""Speech that no model of the project was trained on: synthesised by held-out voices, or recordings of people.

`synthetic` speaks on the fly; `recorded` reads the held-out part of real recordings (the split is that of
`corpus.real_speech`) and any other folder of audio files. Words and digits are joined to clips of some three seconds
where phrases are wanted: STOI and PESQ evaluate phrases.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speechgpt2 import audio
from speechgpt2.corpus import real_speech
from speechgpt2.curriculum import sentences
from speechgpt2.errors import UserError
from speechgpt2.tts import voices
from speechgpt2.types import SAMPLE_RATE

MAX_SECONDS = 12.0  # longer recordings with a transcript are left out, others are cut
MOST = int(MAX_SECONDS * SAMPLE_RATE)  # samples
JOINED_SECONDS = 3.0
GAP_SECONDS = 0.1  # between joined words, besides the margins that the recordings keep
NAMES = {"ljspeech": "LJ Speech", "orders": "coffee orders", "fsdd": "English digits", "cmn-words": "Mandarin words"}
WORDS = ("fsdd", "cmn-words")  # sources of single words
KNOWN = ("ljspeech", "orders", "fsdd", "cmn")  # folders that `corpus.real_speech` reads
LANGUAGES = {"en": "English", "zh": "Mandarin"}
MANY_SPEAKERS = {"orders"}  # sources that do not tell who speaks
SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")


@dataclass(frozen=True)
class SpeechClip:
    """A piece of speech.

    Attributes:
        pcm: Samples [N] at 24 kHz.
        text: What is said; "" where nobody wrote it down.
        lang: "en" or "zh"; "" where it is not known.
        speaker: Who says it; "" where it is not known.
    """

    pcm: NDArray[np.float32] = field(repr=False)
    text: str
    lang: str
    speaker: str


def synthetic(lang: str, clips: int, speakers: Sequence[voices.Voice] | None = None, seed: int = 0) -> list[SpeechClip]:
    """Speak `clips` random sentences of "en" or "zh" with held-out voices, each voice as often as the others."""
    speakers = voices.HELD_OUT_VOICES[lang] if speakers is None else speakers
    rng, result = random.Random(f"eval/{lang}/{seed}"), []
    for i in range(clips):
        voice = speakers[i % len(speakers)]
        spoken = voices.speak(sentences.sentence(rng, lang), voice)
        result.append(SpeechClip(_float32(spoken.pcm), spoken.text, lang, voice.speaker))
    return result


def recorded(
    folder: str | Path, clips: int, seed: int = 0, joined: bool = True, keeps: Callable[[str], bool] | None = None
) -> dict[str, list[SpeechClip]]:
    """Read up to `clips` clips of each set of recordings below `folder`, by the name of the set.

    Args:
        folder: A folder with ljspeech/, orders/, fsdd/, cmn/, or with other folders of audio files without
            transcripts, or with such files.
        clips: The most of each set.
        seed: Of the choice.
        joined: Whether words and digits are joined to phrases.
        keeps: Tells of a single word whether to keep it; by default all are kept.

    Raises:
        UserError: The folder holds no recordings.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"{folder}: no such folder")
    result: dict[str, list[SpeechClip]] = {}
    if any((root / name).is_dir() for name in KNOWN):
        found = [r for r in real_speech.find_recordings(root) if r.split == "test" and r.source in NAMES]
        for source in dict.fromkeys(r.source for r in found):
            chosen = [r for r in found if r.source == source]
            if source in WORDS and keeps is not None:
                chosen = [r for r in chosen if keeps(r.text)]
            random.Random(seed).shuffle(chosen)
            singles = (_clip(r) for r in chosen)
            phrases = (clip for clip in singles if clip is not None)
            stream = _joined(phrases) if joined and source in WORDS else phrases
            if first := list(islice(stream, clips)):
                result[NAMES[source]] = first
    for place in (root, *sorted(path for path in root.iterdir() if path.is_dir() and path.name not in KNOWN)):
        if plain := _plain(place, clips, seed):
            result[place.name] = plain
    if not result:
        raise UserError(f"{folder}: holds none of ljspeech/, orders/, fsdd/, cmn/, and no audio files")
    return result


def _plain(folder: Path, clips: int, seed: int) -> list[SpeechClip]:
    """Clips without transcripts, in a random order."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    random.Random(seed).shuffle(paths)
    return [SpeechClip(_float32(audio.load(path)[:MOST]), "", "", "") for path in paths[:clips]]


def _clip(recording: real_speech.Recording) -> SpeechClip | None:
    item = real_speech.load_recording(recording)
    if item is None or item.pcm is None or len(item.pcm) > MOST:
        return None
    speaker = "" if recording.source in MANY_SPEAKERS else item.record.speaker
    return SpeechClip(_float32(item.pcm), item.record.text, item.record.lang, speaker)


def _joined(clips: Iterator[SpeechClip]) -> Iterator[SpeechClip]:
    """Phrases of `JOINED_SECONDS` from single words."""
    gap = np.zeros(int(GAP_SECONDS * SAMPLE_RATE), np.float32)
    words: list[SpeechClip] = []
    for clip in clips:
        words.append(clip)
        if sum(len(word.pcm) for word in words) >= JOINED_SECONDS * SAMPLE_RATE:
            pcm = np.concatenate([part for word in words for part in (word.pcm, gap)])
            yield SpeechClip(_float32(pcm), " ".join(word.text for word in words), clip.lang, clip.speaker)
            words = []


def _float32(pcm: np.ndarray) -> NDArray[np.float32]:
    return np.asarray(pcm, dtype=np.float32)
