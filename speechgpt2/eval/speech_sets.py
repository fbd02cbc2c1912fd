"""Speech that no model of the project was trained on: synthesised by held-out voices, or recordings of people.

`synthetic` synthesises sentences; `recorded` reads the held-out part of real recordings (the split is that of
`corpus.real_speech`) and any other folder of audio files. Recordings of single words and digits are joined to clips of
three seconds, because STOI and PESQ need phrases.
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
MAX_SAMPLES = int(MAX_SECONDS * SAMPLE_RATE)
JOINED_SECONDS = 3.0
GAP_SECONDS = 0.1  # between joined words, besides the margins that the recordings keep
NAMES = {"ljspeech": "LJ Speech", "orders": "coffee orders", "fsdd": "English digits", "cmn-words": "Mandarin words"}
WORDS = ("fsdd", "cmn-words")  # sources of single words
KNOWN_FOLDERS = ("ljspeech", "orders", "fsdd", "cmn")  # folders that `corpus.real_speech` reads
UNKNOWN_SPEAKERS = {"orders"}  # sources that do not say who speaks
SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")


@dataclass(frozen=True)
class SpeechClip:
    """A piece of speech.

    Attributes:
        pcm: Samples [N] at 24 kHz.
        text: The transcript; "" if there is none.
        lang: "en" or "zh"; "" if it is not known.
        speaker: The speaker's name; "" if it is not known.
    """

    pcm: NDArray[np.float32] = field(repr=False)
    text: str
    lang: str
    speaker: str


def synthetic(lang: str, clips: int, speakers: Sequence[voices.Voice] | None = None, seed: int = 0) -> list[SpeechClip]:
    """Synthesise `clips` random sentences of "en" or "zh" with held-out voices, each voice equally often."""
    speakers = voices.HELD_OUT_VOICES[lang] if speakers is None else speakers
    rng, result = random.Random(f"eval/{lang}/{seed}"), []
    for i in range(clips):
        voice = speakers[i % len(speakers)]
        spoken = voices.speak(sentences.sentence(rng, lang), voice)
        result.append(SpeechClip(_float32(spoken.pcm), spoken.text, lang, voice.speaker))
    return result


def recorded(
    folder: str | Path, clips: int, seed: int = 0, join_words: bool = True, keeps: Callable[[str], bool] | None = None
) -> dict[str, list[SpeechClip]]:
    """Read up to `clips` clips of each set of recordings below `folder`, by the name of the set.

    Args:
        folder: A folder that holds ljspeech/, orders/, fsdd/ or cmn/, other folders of audio files, or audio files;
            the last two are read without transcripts.
        clips: The most clips of each set.
        seed: Seed of the random choice.
        join_words: Whether single words and digits are joined to phrases.
        keeps: Whether to keep a recording of a single word, by its text; by default all are kept.

    Raises:
        UserError: The folder holds no recordings.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"{folder}: no such folder")
    result: dict[str, list[SpeechClip]] = {}
    if any((root / name).is_dir() for name in KNOWN_FOLDERS):
        recordings = [r for r in real_speech.find_recordings(root) if r.split == "test" and r.source in NAMES]
        for source in dict.fromkeys(r.source for r in recordings):
            chosen = [r for r in recordings if r.source == source]
            if source in WORDS and keeps is not None:
                chosen = [r for r in chosen if keeps(r.text)]
            random.Random(seed).shuffle(chosen)
            singles = (_clip(r) for r in chosen)
            phrases = (clip for clip in singles if clip is not None)
            stream = _join_words(phrases) if join_words and source in WORDS else phrases
            if first := list(islice(stream, clips)):
                result[NAMES[source]] = first
    for path in (root, *sorted(path for path in root.iterdir() if path.is_dir() and path.name not in KNOWN_FOLDERS)):
        if without_text := _without_transcripts(path, clips, seed):
            result[path.name] = without_text
    if not result:
        raise UserError(f"{folder}: holds none of ljspeech/, orders/, fsdd/, cmn/, and no audio files")
    return result


def _without_transcripts(folder: Path, clips: int, seed: int) -> list[SpeechClip]:
    """Clips without transcripts, in a random order."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    random.Random(seed).shuffle(paths)
    return [SpeechClip(_float32(audio.load(path)[:MAX_SAMPLES]), "", "", "") for path in paths[:clips]]


def _clip(recording: real_speech.Recording) -> SpeechClip | None:
    item = real_speech.load_recording(recording)
    if item is None or item.pcm is None or len(item.pcm) > MAX_SAMPLES:
        return None
    speaker = "" if recording.source in UNKNOWN_SPEAKERS else item.record.speaker
    return SpeechClip(_float32(item.pcm), item.record.text, item.record.lang, speaker)


def _join_words(clips: Iterator[SpeechClip]) -> Iterator[SpeechClip]:
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
