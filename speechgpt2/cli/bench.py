"""`sg2 bench`: speed on this machine."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Literal

import typer

from speechgpt2.cli.common import CodecName, Device, ModelName, check_report_file, spinner, torch_device
from speechgpt2.cli.options import with_shared_options
from speechgpt2.cli.train import Config as TrainingConfig
from speechgpt2.cli.train import LMOptions, prepare

DTypes = Annotated[list[str], typer.Option("--dtype", help="Precision (repeatable).")]
LMDTypes = Annotated[
    list[str], typer.Option("--dtype", help="Precision (repeatable): float32, bfloat16, int8 or int4.")
]
Threads = Annotated[int, typer.Option(min=1, help="Number of CPU threads.")]
ReportFile = Annotated[
    Path | None, typer.Option("--out", "-o", help="Also write the rows to this JSON file.", metavar="FILE")
]
ServedModel = Annotated[str, typer.Option(help="The model to serve.", metavar="NAME")]
Questions = Annotated[
    Path | None,
    typer.Option(help="A folder of recorded questions (.wav, .flac). [default: two shipped ones]", metavar="FOLDER"),
]


def codec(
    size: Annotated[str, typer.Option(help="Configuration: mini or released. The weights are random.")] = "mini",
    dtype: DTypes = ["float32", "bfloat16"],  # noqa: B006 (typer reads it only)
    threads: Threads = 2,
    device: Device = "auto",
    out: ReportFile = None,
) -> None:
    """Time the codec's streaming steps."""
    from speechgpt2.bench import codec

    check_report_file(out)
    with spinner("timing the codec"):
        codec.main(size=size, dtypes=tuple(dtype), threads=threads, out=out, device=str(torch_device(device)))


def lm(
    model: ModelName = "mini",
    dtype: LMDTypes = ["float32", "bfloat16"],  # noqa: B006 (typer reads it only)
    threads: Threads = 2,
    turns: Annotated[int, typer.Option(min=1, help="Number of whole turns to time.")] = 10,
    questions: Questions = None,
    device: Device = "auto",
    out: ReportFile = None,
) -> None:
    """Time the language model's steps, and whole turns."""
    from speechgpt2.bench import lm

    check_report_file(out)
    device = str(torch_device(device))
    with spinner("timing the language model"):
        lm.main(model, tuple(dtype), threads, turns=turns, questions=questions, out=out, device=device)


@with_shared_options
def train(
    config: TrainingConfig,
    options: LMOptions,
    steps: Annotated[int, typer.Option(min=1, help="Number of steps to time.")] = 5,
    threads: Threads = 2,
    out: ReportFile = None,
) -> None:
    """Time training steps of a stage of the language model, and compare them with large matrix products.

    The options are those of `sg2 train lm`. Without --codes the data are encoded into a temporary folder.
    """
    from speechgpt2.bench import train

    check_report_file(out)
    with tempfile.TemporaryDirectory() as folder:
        settings, model, source, _ = prepare(config, Path(folder), options)
        with spinner("timing training steps"):
            train.main(config.stem, settings, model, source, steps, threads, out, str(torch_device(options.device)))


def device(
    model: Annotated[
        str,
        typer.Option(
            help="Random weights of these sizes: qwen2.5-7b (those of the released model), qwen2.5-0.5b or tiny; or a "
            "built-in name, a folder or a Hugging Face id.",
            metavar="NAME",
        ),
    ] = "qwen2.5-7b",
    codec: CodecName = None,
    sessions: Annotated[
        list[int], typer.Option("--sessions", "-n", min=1, help="Concurrent sessions of an engine (repeatable).")
    ] = [1, 16, 64, 256],  # noqa: B006 (typer reads it only)
    minutes: Annotated[float, typer.Option(min=0.1, help="Time for all parts; what does not fit is left out.")] = 8.0,
    part: Annotated[
        list[str],
        typer.Option(help="Only this part (repeatable): machine, tests, parity, sessions, int8, int4. [default: all]"),
    ] = [],  # noqa: B006 (typer reads it only)
    context: Annotated[int, typer.Option(min=256, help="Patches of 120 ms that each session remembers.")] = 1024,
    device: Device = "auto",
    out: ReportFile = None,
) -> None:
    """Measure all that matters on a GPU within minutes: speed, its tests, parity with the CPU, the engine's steps.

    Parts run in the order of their importance, and each is printed and written at once. Exit code 1 if one failed.
    """
    from speechgpt2.bench import device as bench

    check_report_file(out)
    setup = bench.Setup(model=model, codec=codec, device=str(torch_device(device)), context=context)
    with spinner("measuring the device") as show:
        results = bench.main(setup, sessions, part or bench.GROUPS, minutes, out, show)
    if any(result.status == "failed" for result in results.values()):
        raise typer.Exit(1)


def realtime(
    url: Annotated[
        str | None, typer.Option(help="A running server. [default: start one on this machine]", metavar="URL")
    ] = None,
    key: Annotated[str | None, typer.Option(help="API key of the server.", envvar="SG2_API_KEY", metavar="KEY")] = None,
    model: ServedModel = "mini",
    sessions: Annotated[
        list[int], typer.Option("--sessions", "-n", min=1, help="Number of concurrent sessions (repeatable).")
    ] = [1, 2, 4, 8, 16, 32],  # noqa: B006 (typer reads it only)
    turns: Annotated[int, typer.Option(min=1, help="Questions per session; every second answer is interrupted.")] = 6,
    turn_detection: Annotated[
        Literal["server_vad", "semantic_vad"], typer.Option(help="How the server finds the end of a turn.")
    ] = "server_vad",
    questions: Questions = None,
    device: Device = "auto",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Also write the rows to this JSON file, and a plot next to it.", metavar="FILE"
        ),
    ] = None,
) -> None:
    """Time a server under concurrent sessions that speak in real time: latency, interruptions, steps, gaps."""
    from speechgpt2.bench import realtime

    check_report_file(out)
    with spinner("talking to a server in real time"):
        realtime.main(url, key, model, sessions, turns, questions, out, device, turn_detection)


def soak(
    minutes: Annotated[float, typer.Option(min=0.5, help="Duration of the test.")] = 30.0,
    slots: Annotated[int, typer.Option(min=1, help="Concurrent sessions of the server; one client more tries.")] = 4,
    model: ServedModel = "mini",
    questions: Questions = None,
    seed: Annotated[int, typer.Option(help="Random seed of the clients.")] = 0,
    device: Device = "auto",
    out: ReportFile = None,
) -> None:
    """Run a long load test in which half of the clients misbehave; then stop the server.

    Exit code 1 if a slot leaked, memory grew, a well-behaved client saw an error, or the server did not drain.
    """
    from speechgpt2.bench import soak

    check_report_file(out)
    if soak.main(minutes, slots, model, questions, seed, out, device).failures:
        raise typer.Exit(1)


def data(
    cores: Annotated[int, typer.Option(min=1, help="Processes for speech synthesis.")] = 2,
    sentences: Annotated[int, typer.Option(min=1, help="Sentences to synthesize per process.")] = 60,
    conversations: Annotated[int, typer.Option(min=1, help="Conversations to synthesize per process.")] = 16,
    recordings: Annotated[int, typer.Option(min=1, help="Recordings to clean and annotate.")] = 12,
    records: Annotated[
        int, typer.Option(min=0, help="Records without audio for a bookkeeping test: speed and memory.")
    ] = 0,
    out: ReportFile = None,
) -> None:
    """Time synthesis, cleaning and annotation, in hours of audio per hour."""
    from speechgpt2.bench import data

    check_report_file(out)
    with spinner("timing the data pipeline"):
        data.main(cores, sentences, conversations, recordings, records, out)


def voices(
    voices: Annotated[
        str, typer.Option(help="Set of voices: classic (espeak-ng, flite) or natural (Kokoro).")
    ] = "natural",
    sentences: Annotated[int, typer.Option(min=1, help="Sentences of each of the assistant's voices.")] = 10,
    out: ReportFile = None,
) -> None:
    """Time speech synthesis: CPU seconds for a second of speech, in one thread."""
    from speechgpt2.bench import voices as bench

    check_report_file(out)
    with spinner("timing voices"):
        bench.main(voices, sentences, out)


def kb(
    documents: Annotated[int, typer.Option(min=1, help="Number of small documents.")] = 10_000,
    embedder: Annotated[
        str | None,
        typer.Option(help="Ask again by meaning, too, with an embedder of sg2 kb embed.", metavar="EMBEDDER"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed of the documents.")] = 0,
    out: ReportFile = None,
) -> None:
    """Time a knowledge base and count the questions that find their document."""
    from speechgpt2.bench import knowledge

    check_report_file(out)
    with spinner("timing a knowledge base"):
        knowledge.main(documents, embedder, seed, out)


def grammar(
    model: ModelName = "mini",
    schemas: Annotated[int, typer.Option(min=1, help="Number of random JSON schemas.")] = 200,
    seed: Annotated[int, typer.Option(help="Random seed of schemas and tokens.")] = 0,
    out: ReportFile = None,
) -> None:
    """Time constrained decoding with a model's tokenizer: grammars, and their part of a step."""
    from speechgpt2.bench import grammar

    check_report_file(out)
    with spinner("timing grammars"):
        grammar.main(model, schemas, seed, out)


def styles(
    voices: Annotated[
        str, typer.Option(help="Set of voices: classic (espeak-ng, flite) or natural (Kokoro).")
    ] = "natural",
    sentences: Annotated[int, typer.Option(min=1, help="Sentences of each language.")] = 4,
    asr: Annotated[
        str | None,
        typer.Option(help="A recogniser that checks the words, as in sg2 eval --asr. [default: none]", metavar="NAME"),
    ] = None,
    out: ReportFile = None,
) -> None:
    """Measure styles: rate, pitch, level, voicing, cost, and with --asr the words that are lost."""
    from speechgpt2.bench import styles

    check_report_file(out)
    with spinner("measuring styles"):
        styles.main(voices, sentences, asr, out)
