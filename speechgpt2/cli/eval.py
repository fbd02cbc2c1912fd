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
AsrModel = Annotated[
    str | None,
    typer.Option(
        help="Independent ASR judge: a faster-whisper folder, a Hugging Face id, a size (base), or pocketsphinx.",
        metavar="MODEL",
    ),
]
RealSpeech = Annotated[
    Path | None,
    typer.Option(
        help="Recordings of people to add: a folder with ljspeech/, fsdd/, cmn/, or any folders of audio files.",
        metavar="FOLDER",
    ),
]
Seed = Annotated[int, typer.Option(help="Random seed of the questions.")]
JudgeThreads = Annotated[int, typer.Option(min=1, help="Number of CPU threads of the judges.")]


def codec(
    codec: ModelName = "mini",
    clips: Annotated[int, typer.Option(min=1, help="Clips per test set.")] = 36,
    asr: AsrModel = None,
    real_speech: RealSpeech = None,
    peers: Annotated[bool, typer.Option(help="Compare with Codec2.")] = True,
    threads: JudgeThreads = 1,
    out: ReportFolder = None,
) -> None:
    """Evaluate a codec's reconstruction of held-out speech.

    Two tables, a row per codec and test set. Signal: STOI, PESQ, pitch and spectrum against the original. Judges: the
    errors of an ASR model (--asr), DNSMOS, and speaker similarity with its two baselines; the original is the first
    row of each set.
    """
    from speechgpt2.eval import codec as evaluation

    evaluation.main(codec, real_speech, out, clips, peers, asr, threads)


def speech(
    model: ModelName = "mini",
    limit: Annotated[int, typer.Option(min=1, help="Number of typed questions in each language.")] = 40,
    asr: AsrModel = None,
    seed: Seed = 0,
    threads: JudgeThreads = 1,
    out: ReportFolder = None,
) -> None:
    """Evaluate a model's speech: it answers typed questions aloud.

    Two tables. Speech: the errors of ASR judges against the text. Voice: DNSMOS, and similarity to the teacher's voice.
    The teacher and the teacher through the codec say the same texts, as controls.
    """
    from speechgpt2.eval import speech as evaluation

    evaluation.main(model, limit, out, asr, seed, threads)


def mini(
    model: ModelName = "mini",
    limit: Annotated[int, typer.Option(min=1, help="Number of questions, every second in Mandarin.")] = 200,
    asr: AsrModel = None,
    real_speech: RealSpeech = None,
    typed: Annotated[bool, typer.Option(help="Also ask the questions as text.")] = True,
    speech: Annotated[bool, typer.Option(help="Also evaluate the audio of the answers.")] = True,
    seed: Seed = 0,
    threads: JudgeThreads = 1,
    out: ReportFolder = None,
) -> None:
    """Evaluate a model's answers to held-out questions.

    Tables of correct answers by skill and language, of times, of the end of turns, of the audio as `sg2 eval speech`
    has them, and with --real-speech of what the model understands of people.
    """
    from speechgpt2.eval import spoken_qa

    spoken_qa.main(model, limit, out, typed, speech, seed, asr=asr, real_speech=real_speech, threads=threads)
