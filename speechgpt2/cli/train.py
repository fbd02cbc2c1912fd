"""`sg2 train`: a run is a configuration, a corpus, and a folder from which it resumes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from speechgpt2.cli.common import Device, torch_device
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
Favour = Annotated[float, typer.Option(min=0.1, help="Sample the assistant's voices this many times as often.")]
Resume = Annotated[bool, typer.Option("--resume", help="Resume from RUN's last checkpoint.")]
Processes = Annotated[int, typer.Option(min=1, help="Number of data-parallel processes, each with its own batch.")]


def codec(
    config: Config,
    data: Data,
    out: RunFolder,
    licence: Licence = "",
    resume: Resume = False,
    init: Init = None,
    favour: Favour = 1.0,
    processes: Processes = 1,
    device: Device = "auto",
) -> None:
    """Train a codec. The result is a codec folder in RUN.

    Data other than a corpus of `sg2 data codec-corpus` are resampled, and their pitch is tracked, once: RUN/corpus.
    """
    from speechgpt2.training import distributed

    distributed.launch(processes, partial(_codec, config, data, licence, out, resume, init, favour, device))


def lm(
    config: Config,
    data: Data,
    codec: CodecName,
    out: RunFolder,
    licence: Licence = "",
    resume: Resume = False,
    init: Init = None,
    text_model: TextModel = None,
    processes: Processes = 1,
    device: Device = "auto",
) -> None:
    """Train a language model on data encoded by a codec. The result is a model folder in RUN.

    It begins with --init, a speech model; with --text-model, a text model that gets new speech parts; or else anew.
    Every utterance is encoded once. The codes are kept in RUN/codes, and a stopped run goes on with what is missing.
    """
    from speechgpt2.training import distributed

    distributed.launch(processes, partial(_lm, config, data, licence, codec, out, resume, init, text_model, device))


def _codec(
    config: Path, data: list[str], licence: str, out: Path, resume: bool, init: str | None, favour: float, device: str
) -> None:
    from speechgpt2 import config as configs
    from speechgpt2.codec.train import CodecTrainConfig, train
    from speechgpt2.corpus.codec_dataset import CorpusCrops
    from speechgpt2.corpus.data_config import read_data_configs
    from speechgpt2.corpus.import_corpus import as_corpus
    from speechgpt2.corpus.phones import save_labels, saved_labels

    settings = configs.load(CodecTrainConfig, config)
    settings = replace(settings, init=init or settings.init)
    corpus = as_corpus(read_data_configs(data, licence), out / "corpus")
    source = CorpusCrops(corpus, favour, saved_labels(out), settings.mix)
    save_labels(out, source.phones)
    train(settings, source, str(out), resume, str(torch_device(device)))


def _lm(
    config: Path,
    data: list[str],
    licence: str,
    codec: str,
    out: Path,
    resume: bool,
    init: str | None,
    text_model: str | None,
    device: str,
) -> None:
    import torch

    from speechgpt2 import config as configs
    from speechgpt2.codec.model import Codec
    from speechgpt2.corpus.codes import encode_data
    from speechgpt2.corpus.data_config import read_data_configs
    from speechgpt2.corpus.model_setup import from_text, going_on, new_model
    from speechgpt2.corpus.task_dataset import TaskSource
    from speechgpt2.lm.model import SpeechLM
    from speechgpt2.lm.train import LMTrainConfig, train

    if init and text_model:
        raise UserError("give --init or --text-model, not both")
    settings = configs.load(LMTrainConfig, config)
    speech_codec, place = Codec.from_pretrained(codec), torch_device(device)
    coded = encode_data(read_data_configs(data, licence), speech_codec, out / "codes", place)
    if init:
        model = going_on(SpeechLM.from_pretrained(init, torch.float32), settings, speech_codec)
    elif text_model:
        model = from_text(text_model, settings, speech_codec)
    else:
        model = new_model(settings, coded, speech_codec)
    train(settings, model, TaskSource(coded, model.prompt, settings.mix), str(out), resume, str(place))
