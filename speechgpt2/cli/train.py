"""`sg2 train`: a run is a configuration, a corpus, and a folder from which it resumes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from speechgpt2.cli.common import Device, torch_device
from speechgpt2.cli.options import with_shared_options
from speechgpt2.errors import UserError

Config = Annotated[Path, typer.Argument(help="A YAML file; recipes/ has examples.", metavar="CONFIG.yaml")]
Data = Annotated[
    list[str],
    typer.Option(
        help="A folder of recordings, shards (Lhotse Shar, WebDataset), a Hugging Face dataset folder, dialogues, "
        "texts, a corpus, or a YAML file that lists several; repeatable. docs/training.md describes them.",
        metavar="FOLDER|FILE.yaml",
    ),
]
Licence = Annotated[
    str, typer.Option(help="Licence of data that state none; `own` if the recordings are yours.", metavar="SPDX")
]
RunFolder = Annotated[
    Path, typer.Option("--out", "-o", help="Folder for checkpoints, logs and the trained model.", metavar="RUN")
]
CodecName = Annotated[
    str, typer.Option(help="Codec of the model: built-in name, folder or Hugging Face id.", metavar="CODEC")
]
Init = Annotated[str | None, typer.Option(help="Model folder to initialise the weights from.", metavar="NAME")]
TextModel = Annotated[
    str | None,
    typer.Option(help="Text model to begin with: a folder, a Hugging Face id or a GGUF file (Qwen2, Qwen3, Llama)."),
]
Codes = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the encoded data, which several runs may share. [default: RUN/codes]", metavar="FOLDER"
    ),
]
Favour = Annotated[float, typer.Option(min=0.1, help="Sample the assistant's voices this many times as often.")]
Resume = Annotated[bool, typer.Option("--resume", help="Resume from RUN's last checkpoint.")]
Smoke = Annotated[
    bool,
    typer.Option(
        "--smoke", help="Run the recipe in small, on made-up speech, and fail if its losses do not fall. No --data."
    ),
]
Processes = Annotated[int, typer.Option(min=1, help="Number of data-parallel processes, each with its own batch.")]


def codec(
    config: Config,
    out: RunFolder,
    data: Data = (),  # type: ignore[assignment]
    licence: Licence = "",
    resume: Resume = False,
    init: Init = None,
    favour: Favour = 1.0,
    processes: Processes = 1,
    device: Device = "auto",
    smoke: Smoke = False,
) -> None:
    """Train a codec. The result is a codec folder in RUN.

    Data other than a corpus of `sg2 data codec-corpus` are resampled, and their pitch is tracked, once: RUN/corpus.
    """
    from speechgpt2.training import distributed

    if smoke:
        _refuse_with_smoke(data=data, licence=licence, resume=resume, favour=favour != 1.0, processes=processes > 1)
        _smoke_codec(config, out, init, device)
        return
    distributed.launch(processes, partial(_codec, config, data, licence, out, resume, init, favour, device))


@dataclass(frozen=True)
class LMOptions:
    """Options of the data and models that training begins with."""

    data: Data = ()  # type: ignore[assignment]
    codec: CodecName = ""
    licence: Licence = ""
    codes: Codes = None
    init: Init = None
    text_model: TextModel = None
    device: Device = "auto"


@with_shared_options
def lm(
    config: Config,
    out: RunFolder,
    options: LMOptions,
    resume: Resume = False,
    processes: Processes = 1,
    smoke: Smoke = False,
) -> None:
    """Train a language model on data encoded by a codec. The result is a model folder in RUN.

    It begins with the speech model --init, or with the text model --text-model and new speech parts, or with random
    weights. Every utterance is encoded once, into --codes; a stopped run encodes only the missing ones.
    """
    from speechgpt2.training import distributed

    if smoke:
        given = {name: getattr(options, name) for name in ("data", "codec", "licence", "codes")}
        _refuse_with_smoke(**given, resume=resume, processes=processes > 1)
        _smoke_lm(config, out, options)
        return
    distributed.launch(processes, partial(_lm, config, out, options, resume))


@with_shared_options
def show(
    config: Config,
    out: RunFolder,
    options: LMOptions,
    count: Annotated[int, typer.Option(min=1, help="Examples of each task.")] = 3,
) -> None:
    """Print training examples of every task of a stage: text, what is learnt, and the speech as WAV files in RUN/show.

    The options are those of `sg2 train lm`. Nothing is trained; codes are kept for the training run.
    """
    from speechgpt2.corpus.show_examples import show_examples

    _, _, source, speech_codec = prepare(config, out, options)
    show_examples(source, speech_codec, count, out / "show")


def plan(
    config: Config,
    init: Annotated[
        str | None,
        typer.Option(help="Model to plan for: `released` (7.7 B), a built-in name or a folder.", metavar="NAME"),
    ] = None,
    text_model: TextModel = None,
    memory: Annotated[float, typer.Option(min=1, help="GiB of a device.")] = 80.0,
    tflops: Annotated[
        float, typer.Option(min=0.01, help="10¹² operations that a device computes in a second.")
    ] = 300.0,
) -> None:
    """Print the memory and the time of a training step on 1 to 64 devices, without any weights.

    Fails if the run does not fit any of them.
    """
    from speechgpt2 import config as configs
    from speechgpt2.corpus.model_setup import planned_shape
    from speechgpt2.lm import train_plan
    from speechgpt2.lm.train import LMTrainConfig

    settings = configs.load(LMTrainConfig, config)
    cost = train_plan.step_cost(settings, planned_shape(settings, init, text_model))
    print(f"trained {cost.trained / 1e6:.1f} M parameters, frozen {cost.frozen / 1e6:.1f} M; GiB of each device:")
    print("devices  weights  states  activations  all   s/step")
    fits = False
    for devices in train_plan.DEVICES:
        p = train_plan.plan(settings, cost, devices, tflops * 1e12)
        parts = [part / train_plan.GIB for part in (p.weights, p.states, p.activations, p.memory)]
        is_enough = parts[-1] * train_plan.MARGIN <= memory
        fits = fits or is_enough
        columns = "{:7.2f}  {:6.2f}  {:11.2f}  {:5.2f}".format(*parts)
        print(f"{devices:7d}  {columns}  {p.seconds:.3g}{'' if is_enough else '  does not fit'}")
    if not fits:
        raise UserError(
            f"this run does not fit devices of {memory:g} GiB; try `sharded: true`, `checkpoint_activations: true`, "
            "fewer rows, or `lora` with a frozen backbone"
        )


def _smoke_codec(config: Path, out: Path, init: str | None, device: str) -> None:
    from speechgpt2 import config as configs
    from speechgpt2.codec.train import CodecTrainConfig
    from speechgpt2.corpus.smoke import smoke_codec

    settings = configs.load(CodecTrainConfig, config)
    smoke_codec(replace(settings, init=init or settings.init), out, str(torch_device(device)))


def _smoke_lm(config: Path, out: Path, options: LMOptions) -> None:
    from speechgpt2 import config as configs
    from speechgpt2.corpus.smoke import smoke_lm
    from speechgpt2.lm.train import LMTrainConfig

    settings, device = configs.load(LMTrainConfig, config), str(torch_device(options.device))
    smoke_lm(settings, out, options.init, options.text_model, device)


def _refuse_with_smoke(**given: Any) -> None:
    """Raise `UserError` if options were given that a smoke run has no use for."""
    if useless := [f"--{name}" for name, value in given.items() if value]:
        raise UserError(f"--smoke makes up its speech and runs once, in one process; leave out {', '.join(useless)}")


def _codec(
    config: Path, data: list[str], licence: str, out: Path, resume: bool, init: str | None, favour: float, device: str
) -> None:
    from speechgpt2 import config as configs
    from speechgpt2.codec.train import CodecTrainConfig, train
    from speechgpt2.corpus.codec_dataset import CorpusCrops
    from speechgpt2.corpus.data_config import read_data_configs
    from speechgpt2.corpus.import_corpus import as_corpus
    from speechgpt2.corpus.phones import save_labels, saved_labels
    from speechgpt2.eval.validation import codec_judge

    settings = configs.load(CodecTrainConfig, config)
    settings = replace(settings, init=init or settings.init)
    corpus = as_corpus(read_data_configs(data, licence), out / "corpus")
    source = CorpusCrops(corpus, favour, saved_labels(out), settings.mix)
    save_labels(out, source.phones)
    held_out = source.held_out(settings.validation.examples) if settings.validation.every else []
    _say_if_unvalidated(settings.validation, held_out)
    judge = codec_judge(settings.validation.asr, settings.validation.by) if held_out else None
    train(settings, source, str(out), resume, str(torch_device(device)), held_out, judge)


def _lm(config: Path, out: Path, options: LMOptions, resume: bool) -> None:
    from speechgpt2.corpus.phones import save_labels, saved_labels
    from speechgpt2.lm.train import train

    settings, model, source, _ = prepare(config, out, options, saved_labels(out))
    save_labels(out, source.phones)
    held_out = source.held_out(settings.validation.examples) if settings.validation.every else []
    _say_if_unvalidated(settings.validation, held_out)
    train(settings, model, source, str(out), resume, str(torch_device(options.device)), held_out)


def _say_if_unvalidated(validation: Any, held_out: Sequence[Any]) -> None:
    from speechgpt2.training import distributed

    if validation.every and not held_out and distributed.rank() == 0:
        print("no data are held out, so the run is not validated (docs/training.md, Data)", file=sys.stderr)


def prepare(
    config: Path, out: Path, options: LMOptions, phones: Sequence[str] | None = None
) -> tuple[Any, Any, Any, Any]:
    """Return the configuration, the model, the source of examples and the codec of a training run."""
    from speechgpt2 import config as configs
    from speechgpt2.codec.model import Codec
    from speechgpt2.corpus.codes import encode_data
    from speechgpt2.corpus.data_config import read_data_configs
    from speechgpt2.corpus.model_setup import model_to_train
    from speechgpt2.corpus.task_dataset import TaskSource
    from speechgpt2.lm.train import LMTrainConfig

    if options.init and options.text_model:
        raise UserError("give --init or --text-model, not both")
    if not options.codec:
        raise UserError("give --codec, the codec of the model: a built-in name, a folder or a Hugging Face id")
    settings = configs.load(LMTrainConfig, config)
    speech_codec = Codec.from_pretrained(options.codec)
    data, codes = read_data_configs(options.data, options.licence), options.codes or out / "codes"
    coded = encode_data(data, speech_codec, codes, torch_device(options.device))
    model = model_to_train(settings, coded, speech_codec, options.init, options.text_model)
    return settings, model, TaskSource(coded, model.prompt, settings.mix, phones=phones), speech_codec
