"""The judges of speech: an ASR model, DNSMOS and a speaker encoder, loaded once for all tables of a command.

A judge is independent if it shares no weights with the model that it evaluates. The user names the ASR model (`--asr`);
the others come with the extra `eval`. Notes below the tables list the judges that are missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speechgpt2 import asr
from speechgpt2.dnsmos import DnsMos
from speechgpt2.errors import UserError
from speechgpt2.eval.speaker_similarity import Embedding, SpeakerEncoder

Wave = NDArray[np.float32]
NO_ASR = "No independent ASR judge: give one by --asr, for example the folder of a faster-whisper model."


@dataclass(frozen=True)
class Judges:
    """The available judges; None for one that is missing.

    Attributes:
        asr: Transcribes speech; its errors are counted against the text.
        mos: Predicts opinion scores.
        speaker: Embeds voices.
        notes: A line for each judge that is missing.
    """

    asr: asr.Recogniser | None = None
    mos: DnsMos | None = None
    speaker: SpeakerEncoder | None = None
    notes: tuple[str, ...] = (NO_ASR,)

    def knows(self, language: str) -> bool:
        """Whether the ASR judge recognises a language; "" means that it detects the language."""
        return self.asr is not None and (not language or language in self.asr.languages)

    def transcribe(self, waves: Sequence[Wave], language: str) -> list[str]:
        """The ASR judge's transcript of each wave [N] at 24 kHz; only where `knows` is true."""
        assert self.asr is not None
        return [self.asr.transcribe(wave, language).text for wave in waves]

    def mean_opinion(self, waves: Sequence[Wave]) -> float:
        """The mean overall DNSMOS; nan without the network or without speech."""
        scores = [self.mos.score(wave).overall for wave in waves if len(wave)] if self.mos else []
        return float(np.mean(scores)) if scores else float("nan")

    def embed(self, waves: Sequence[Wave]) -> list[Embedding | None]:
        """The speaker embedding of each wave; None for each without the encoder."""
        return [self.speaker.embed(wave) if self.speaker else None for wave in waves]


def load_asr(model: str | Path, threads: int = 1) -> asr.Recogniser:
    """Load an ASR judge as `asr.load` takes it.

    Raises:
        UserError: The model is missing or not usable, or is a model of this project: not an independent judge.
    """
    recogniser = asr.load(model, threads=threads)
    if not recogniser.independent:
        raise UserError(f"{model}: a model of this project is not an independent judge; give Whisper or pocketsphinx")
    return recogniser


def load(model: str | Path | None = None, threads: int = 1) -> Judges:
    """Load the judges.

    Args:
        model: The ASR judge as `asr.load` takes it; None for no ASR judge.
        threads: CPU threads of each judge.

    Raises:
        UserError: The ASR model is missing or not usable, or is a model of this project: not an independent judge.
    """
    notes, mos, speaker = [], None, None
    recogniser = None if model is None else load_asr(model, threads)
    if recogniser is None:
        notes.append(NO_ASR)
    try:
        mos = DnsMos(threads=threads)
    except UserError as error:
        notes.append(f"No DNSMOS: {error}")
    try:
        speaker = SpeakerEncoder()
    except UserError as error:
        notes.append(f"No speaker similarity: {error}")
    return Judges(recogniser, mos, speaker, tuple(notes))
