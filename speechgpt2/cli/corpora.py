"""`sg2 data`: corpora of synthetic speech and dialogues. A build that was stopped goes on where it was."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

OutFolder = Annotated[Path, typer.Argument(help="The corpus' folder.", metavar="FOLDER")]
Seed = Annotated[int, typer.Option(help="Another seed, another corpus.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes; they do not change the result.")]
Hours = Annotated[float, typer.Option(min=0.0, help="Hours of synthetic speech.")]
RealSpeech = Annotated[
    Path | None, typer.Option(help="Recordings to add: a folder with ljspeech/, fsdd/, cmn/.", metavar="FOLDER")
]
Exchanges = Annotated[int, typer.Option(min=1, help="Questions with replies.")]
Says = Annotated[int | None, typer.Option(min=0, help="Texts read aloud; half as many as exchanges if not given.")]

Dictations = Annotated[int, typer.Option(min=0, help="Utterances of users that are only to be understood.")]


def codec_corpus(
    out: OutFolder, hours: Hours = 6.0, real_speech: RealSpeech = None, seed: Seed = 0, workers: Workers = 2
) -> None:
    """Speech of many voices with pitch and phones, for the codec."""
    from speechgpt2.corpus.synthesize import build_codec_corpus

    _report(build_codec_corpus(out, hours, seed, workers, real_speech))


def dialogue_corpus(
    out: OutFolder,
    exchanges: Exchanges = 24_000,
    says: Says = None,
    dictations: Dictations = 0,
    seed: Seed = 0,
    workers: Workers = 2,
) -> None:
    """Spoken questions and replies, for the language model."""
    from speechgpt2.corpus.synthesize import build_dialogue_corpus

    _report(build_dialogue_corpus(out, exchanges, seed, workers, says, dictations))


def _report(corpus: Any) -> None:
    print(f"{corpus.path}: {len(corpus)} records, {corpus.hours:.2f} hours")
