"""`sg2 eval` and `sg2 bench`: how good, and how fast."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from speechgpt2.cli.common import ModelName
from speechgpt2.errors import UserError

ReportFolder = Annotated[
    Path | None, typer.Option("--out", "-o", help="A folder for the report, as JSON and Markdown.")
]
ReportFile = Annotated[Path | None, typer.Option("--out", "-o", help="A JSON file for the rows.")]
DTypes = Annotated[list[str], typer.Option("--dtype", help="Precision; may be given several times.")]
Threads = Annotated[int, typer.Option(min=1, help="Of the processor.")]


def eval_mini(
    model: ModelName = "mini",
    limit: Annotated[int, typer.Option(min=1, help="Questions to put.")] = 200,
    out: ReportFolder = None,
    typed: Annotated[bool, typer.Option(help="Type the questions too.")] = True,
    speech: Annotated[bool, typer.Option(help="Judge the sound of the answers too.")] = True,
    seed: Annotated[int, typer.Option(help="Of the questions.")] = 0,
) -> None:
    """Put held-out questions to a model and judge its answers."""
    from speechgpt2.eval import dialogue

    dialogue.main(model, limit, out, typed, speech, seed)


def eval_codec(
    codec: ModelName = "mini",
    clips: Annotated[int, typer.Option(min=1, help="Clips per test set.")] = 36,
    real_speech: Annotated[
        Path | None,
        typer.Option(help="Recordings to judge on: a folder with ljspeech/, fsdd/, cmn/.", metavar="FOLDER"),
    ] = None,
    peers: Annotated[bool, typer.Option(help="Show Codec2 beside it.")] = True,
    out: ReportFolder = None,
) -> None:
    """Judge what a codec keeps of held-out speech."""
    from speechgpt2.eval import codec as judge

    judge.main(codec, real_speech, out, clips, peers)


def bench_codec(
    size: Annotated[str, typer.Option(help="released or mini; the weights are random.")] = "mini",
    dtype: DTypes = ["float32", "bfloat16"],  # noqa: B006 (typer reads it only)
    threads: Threads = 2,
    out: ReportFile = None,
) -> None:
    """Time the codec's streaming steps."""
    from speechgpt2.bench import codec

    check_file(out)
    codec.main(size=size, dtypes=tuple(dtype), threads=threads, out=out)


def bench_lm(
    model: ModelName = "mini",
    dtype: DTypes = ["float32", "bfloat16"],  # noqa: B006 (typer reads it only)
    threads: Threads = 2,
    turns: Annotated[int, typer.Option(min=1, help="Whole turns to time.")] = 10,
    questions: Annotated[
        Path | None,
        typer.Option(
            help="A folder of recorded questions (.wav, .flac); else two shipped ones.",
            metavar="FOLDER",
        ),
    ] = None,
    out: ReportFile = None,
) -> None:
    """Time the language model's steps, and whole turns."""
    from speechgpt2.bench import lm

    check_file(out)
    lm.main(model, tuple(dtype), threads, turns=turns, questions=questions, out=out)


def bench_data(
    cores: Annotated[int, typer.Option(min=1, help="Processes for synthesis.")] = 2,
    sentences: Annotated[int, typer.Option(min=1, help="To speak, on each core.")] = 60,
    conversations: Annotated[int, typer.Option(min=1, help="To make, on each core.")] = 16,
    recordings: Annotated[int, typer.Option(min=1, help="To clean and annotate.")] = 12,
    records: Annotated[int, typer.Option(min=0, help="To keep books of, without sound: speed and memory.")] = 0,
    out: ReportFile = None,
) -> None:
    """Time synthesis, cleaning and annotation: hours of sound per hour."""
    from speechgpt2.bench import data

    check_file(out)
    data.main(cores, sentences, conversations, recordings, records, out)


def check_file(out: Path | None) -> None:
    """Errors: `UserError` unless the report can be written, asked before it is made."""
    from speechgpt2 import hub

    if out is not None:
        hub.check_writable(out)
        if out.suffix != ".json":
            raise UserError(f"cannot write {out}: the ending must be .json")
