"""`sg2 eval`: the quality of codecs and models on held-out data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from speechgpt2.cli.common import ModelName

ReportFolder = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Also write the report to this folder, as JSON and Markdown.", metavar="FOLDER"),
]


def mini(
    model: ModelName = "mini",
    limit: Annotated[int, typer.Option(min=1, help="Number of questions.")] = 200,
    out: ReportFolder = None,
    typed: Annotated[bool, typer.Option(help="Also ask the questions as text.")] = True,
    speech: Annotated[bool, typer.Option(help="Also evaluate the audio of the answers.")] = True,
    seed: Annotated[int, typer.Option(help="Random seed of the questions.")] = 0,
) -> None:
    """Evaluate a model's answers to held-out questions."""
    from speechgpt2.eval import dialogue

    dialogue.main(model, limit, out, typed, speech, seed)


def codec(
    codec: ModelName = "mini",
    clips: Annotated[int, typer.Option(min=1, help="Clips per test set.")] = 36,
    real_speech: Annotated[
        Path | None,
        typer.Option(help="Real recordings to add: a folder with ljspeech/, fsdd/ and cmn/.", metavar="FOLDER"),
    ] = None,
    peers: Annotated[bool, typer.Option(help="Compare with Codec2.")] = True,
    out: ReportFolder = None,
) -> None:
    """Evaluate a codec's reconstruction of held-out speech."""
    from speechgpt2.eval import codec as evaluation

    evaluation.main(codec, real_speech, out, clips, peers)
