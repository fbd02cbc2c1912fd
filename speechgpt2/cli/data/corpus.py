"""`sg2 data codec-corpus` and `dialogue-corpus`: training corpora of synthetic speech. A stopped build resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

OutFolder = Annotated[Path, typer.Argument(help="Folder of the corpus; a stopped build resumes.", metavar="FOLDER")]
Seed = Annotated[int, typer.Option(help="Random seed.")]
LocalWorkers = Annotated[int, typer.Option(min=1, help="Number of processes; the result does not depend on it.")]
Hours = Annotated[float, typer.Option(min=0.0, help="Hours of synthetic speech.")]
RealSpeech = Annotated[
    Path | None,
    typer.Option(help="Real recordings to add: a folder with ljspeech/, fsdd/, cmn/ and orders/.", metavar="FOLDER"),
]
Voices = Annotated[
    str,
    typer.Option(
        help="Speakers: classic (espeak-ng, flite), natural (Kokoro), or askers (as classic, without spoken replies).",
        metavar="SET",
    ),
]
Exchanges = Annotated[int, typer.Option(min=1, help="Number of questions with replies.")]
Says = Annotated[
    int | None, typer.Option(min=0, help="Number of texts to speak (text to speech). [default: half of the exchanges]")
]
Takes = Annotated[
    int, typer.Option(min=1, help="How often a question or dictation occurs, each time with another room and noise.")
]
Skills = Annotated[
    list[str],
    typer.Option("--skill", help="Ask for this skill only (repeatable). [default: all in their shares, without chat]"),
]
HeldOut = Annotated[int, typer.Option(min=1, help="Number of held-out questions, the test split.")]
Dictations = Annotated[int, typer.Option(min=0, help="Number of utterances to transcribe (speech to text).")]


def codec_corpus(
    out: OutFolder,
    hours: Hours = 6.0,
    real_speech: RealSpeech = None,
    voices: Voices = "classic",
    seed: Seed = 0,
    workers: LocalWorkers = 2,
) -> None:
    """Synthesize speech of many voices with pitch and phone labels, to train a codec."""
    from speechgpt2.corpus.build_corpora import build_codec_corpus

    _report(build_codec_corpus(out, hours, seed, workers, real_speech, voices))


def dialogue_corpus(
    out: OutFolder,
    exchanges: Exchanges = 24_000,
    says: Says = None,
    dictations: Dictations = 0,
    takes: Takes = 1,
    test: HeldOut = 400,
    real_speech: RealSpeech = None,
    voices: Voices = "classic",
    skill: Skills = [],  # noqa: B006 (typer reads it only)
    seed: Seed = 0,
    workers: LocalWorkers = 2,
) -> None:
    """Synthesize spoken questions and replies, to train a language model."""
    from speechgpt2.corpus.build_corpora import build_dialogue_corpus

    amounts = (says, dictations, test)
    _report(build_dialogue_corpus(out, exchanges, seed, workers, *amounts, voices, takes, real_speech, skill))


def _report(corpus: Any) -> None:
    print(f"{corpus.path}: {len(corpus)} records, {corpus.hours:.2f} hours")
