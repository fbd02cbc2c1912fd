"""`sg2 eval`: the quality of codecs and models on held-out data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from speechgpt2.cli.common import MODEL_HELP, Device, ModelName, check_report_file, torch_device

ReportFolder = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Also write the report to this folder, as JSON and Markdown.", metavar="FOLDER"),
]
ReportFile = Annotated[
    Path | None, typer.Option("--out", "-o", help="Also write the rows to this JSON file.", metavar="FILE")
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
        help="Real recordings to add: a folder with ljspeech/, orders/, fsdd/, cmn/, or other folders of audio files.",
        metavar="FOLDER",
    ),
]
Voices = Annotated[
    list[str],
    typer.Option(help="Set of held-out voices: classic (espeak-ng, flite) or natural (Kokoro); repeatable."),
]
Teacher = Annotated[
    str,
    typer.Option(
        help="Voices that the model learnt to speak with: classic (espeak-ng, flite), or as mini natural (Kokoro)."
    ),
]
Seed = Annotated[int, typer.Option(help="Random seed of the questions.")]
JudgeThreads = Annotated[int, typer.Option(min=1, help="Number of CPU threads of the judges.")]


def codec(
    codec: ModelName = "mini",
    clips: Annotated[int, typer.Option(min=1, help="Clips per test set.")] = 36,
    asr: AsrModel = None,
    voices: Voices = ["classic"],  # noqa: B006 (typer reads it only)
    real_speech: RealSpeech = None,
    peers: Annotated[bool, typer.Option(help="Compare with Codec2.")] = True,
    threads: JudgeThreads = 1,
    device: Device = "auto",
    out: ReportFolder = None,
) -> None:
    """Evaluate a codec's reconstruction of held-out speech.

    Two tables, a row per codec and test set. Signal: STOI, PESQ, pitch and spectrum against the original. Judges: the
    errors of an ASR model (--asr), DNSMOS, and speaker similarity with its two baselines; the original is the first
    row of each set.
    """
    _require_scipy()
    from speechgpt2.eval import codec as evaluation

    device = str(torch_device(device))
    evaluation.main(codec, real_speech, out, clips, peers, asr, threads, _held_out(voices), device)


def speech(
    model: ModelName = "mini",
    limit: Annotated[int, typer.Option(min=1, help="Number of typed questions in each language.")] = 40,
    asr: AsrModel = None,
    teacher: Teacher = "classic",
    voices: Voices = [],  # noqa: B006 (typer reads it only)
    seed: Seed = 0,
    threads: JudgeThreads = 1,
    device: Device = "auto",
    out: ReportFolder = None,
) -> None:
    """Evaluate a model's speech: it answers typed questions aloud.

    Two tables. Speech: the errors of ASR judges against the text. Voice: DNSMOS, and similarity to the teacher's voice.
    The teacher, the teacher through the codec and the voices of --voices say the same texts, as controls.
    """
    _require_scipy()
    from speechgpt2.eval import speech as evaluation
    from speechgpt2.tts.voice_sets import voice_set

    device = str(torch_device(device))
    evaluation.main(model, limit, out, asr, seed, threads, voice_set(teacher), _held_out(voices), device)


def mini(
    model: ModelName = "mini",
    limit: Annotated[int, typer.Option(min=1, help="Number of questions, every second in Mandarin.")] = 200,
    asr: AsrModel = None,
    voices: Voices = ["classic"],  # noqa: B006 (typer reads it only)
    skill: Annotated[
        list[str],
        typer.Option("--skill", help="Ask for this skill only (repeatable). [default: all but chat]"),
    ] = [],  # noqa: B006
    teacher: Teacher = "classic",
    real_speech: RealSpeech = None,
    typed: Annotated[bool, typer.Option(help="Also ask the questions as text.")] = True,
    speech: Annotated[bool, typer.Option(help="Also evaluate the audio of the answers.")] = True,
    seed: Seed = 0,
    threads: JudgeThreads = 1,
    device: Device = "auto",
    out: ReportFolder = None,
) -> None:
    """Evaluate a model's answers to held-out questions.

    It prints tables of correct answers by skill and language, times, detection of the end of a turn, the speech (as
    `sg2 eval speech`), rejection of inputs without a question, and with --real-speech transcripts of recordings.
    """
    _require_scipy()
    from speechgpt2.eval import spoken_qa
    from speechgpt2.tts.voice_sets import voice_set

    options: dict[str, Any] = {"asr": asr, "real_speech": real_speech, "threads": threads}
    options |= {"device": str(torch_device(device)), "skills": skill}
    spoken_qa.main(
        model, limit, out, typed, speech, seed, **options, speakers=_held_out(voices), teacher=voice_set(teacher)
    )


def transcription(
    data: Annotated[
        str,
        typer.Argument(
            help="Recordings with transcripts, in a format of training data (docs/training.md); of a corpus, its test "
            "split is used.",
            metavar="DATA",
        ),
    ],
    model: ModelName = "mini",
    codec: Annotated[
        str | None, typer.Option(help="Codec, if it is not in the model's folder.", metavar="CODEC")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of recordings of each language.")] = 100,
    asr: AsrModel = None,
    seed: Annotated[int, typer.Option(help="Random seed of the choice of recordings.")] = 0,
    threads: JudgeThreads = 1,
    device: Device = "auto",
    out: ReportFolder = None,
) -> None:
    """Evaluate a model's transcripts: word errors in English, character errors in Mandarin.

    With --asr an independent ASR model transcribes the same recordings, as the control.
    """
    from speechgpt2.eval import transcription as evaluation

    evaluation.main(data, model, codec, limit, asr, seed, threads, out, str(torch_device(device)))


def precision(
    model: Annotated[str, typer.Argument(help=f"{MODEL_HELP} Also a text model, or its GGUF file.", metavar="NAME")],
    text: Annotated[
        list[Path], typer.Option(help="A text to predict (repeatable); a text model needs one.", metavar="FILE")
    ] = [],  # noqa: B006 (typer reads it only)
    weights: Annotated[
        list[str], typer.Option(help="Precision (repeatable): float32, bfloat16, int8, int4, int4/128. [default: all]")
    ] = [],  # noqa: B006 (typer reads it only)
    calibrate: Annotated[
        list[Path],
        typer.Option(help="Calibrate int8 and int4 on this text (repeatable), as in sg2 convert.", metavar="FILE"),
    ] = [],  # noqa: B006 (typer reads it only)
    tokens: Annotated[int, typer.Option(min=2, help="Maximum number of tokens of a text.")] = 1024,
    threads: Annotated[int, typer.Option(min=1, help="Number of CPU threads.")] = 2,
    out: ReportFile = None,
) -> None:
    """Compare the precisions in which weights can be stored: perplexity, logits, and greedy choices, on the CPU.

    Sequences are the given texts, and for a model of speech its own greedy replies to typed questions. Each precision
    predicts every next token of them, and is compared with the float32 weights; perplexity is compared with bfloat16.
    """
    from speechgpt2.eval import precision as evaluation

    check_report_file(out)
    evaluation.main(model, text, weights or evaluation.PRECISIONS, tokens, threads, out, calibrate)


def _held_out(names: list[str]) -> dict[str, Any]:
    """Return the held-out voices of these sets, by name and language. Raises `UserError`."""
    from speechgpt2.tts.voice_sets import voice_set

    return {name: voice_set(name).held_out for name in names}


def _require_scipy() -> None:
    """Say which extra is missing before voices and measures are imported, which need scipy for several extras."""
    from speechgpt2.extras import require

    require("scipy", "eval")
