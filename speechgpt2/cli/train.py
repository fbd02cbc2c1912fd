"""`sg2 train`: a run is a configuration, a corpus, and a folder from which it resumes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from speechgpt2.cli.common import Device, torch_device

Config = Annotated[Path, typer.Argument(help="A YAML file; recipes/ has examples.", metavar="CONFIG.yaml")]
Corpus = Annotated[Path, typer.Option(help="A corpus folder built by `sg2 data`.", metavar="FOLDER")]
RunFolder = Annotated[
    Path, typer.Option("--out", "-o", help="Folder for checkpoints, logs and the trained model.", metavar="RUN")
]
CodecName = Annotated[
    str, typer.Option(help="Codec of the model: built-in name, folder or Hugging Face id.", metavar="CODEC")
]
Init = Annotated[str | None, typer.Option(help="Model folder to initialise the weights from.", metavar="NAME")]
Favour = Annotated[float, typer.Option(min=0.1, help="Sample the assistant's voices this many times as often.")]
Resume = Annotated[bool, typer.Option("--resume", help="Resume from RUN's last checkpoint.")]
Processes = Annotated[int, typer.Option(min=1, help="Number of data-parallel processes, each with its own batch.")]


def codec(
    config: Config,
    corpus: Corpus,
    out: RunFolder,
    resume: Resume = False,
    init: Init = None,
    favour: Favour = 1.0,
    processes: Processes = 1,
    device: Device = "auto",
) -> None:
    """Train a codec. The result is a codec folder in RUN."""
    from speechgpt2.training import distributed

    distributed.launch(processes, partial(_codec, config, corpus, out, resume, init, favour, device))


def lm(
    config: Config,
    corpus: Corpus,
    codec: CodecName,
    out: RunFolder,
    resume: Resume = False,
    init: Init = None,
    processes: Processes = 1,
    device: Device = "auto",
) -> None:
    """Train a language model on dialogues encoded by a codec. The result is a model folder in RUN.

    The corpus comes from `sg2 data dialogue-corpus` or `sg2 data synthesize`. Its codes are cached in RUN/codes.npy,
    which belongs to this corpus and this codec.
    """
    from speechgpt2.training import distributed

    distributed.launch(processes, partial(_lm, config, corpus, codec, out, resume, init, device))


def _codec(config: Path, corpus: Path, out: Path, resume: bool, init: str | None, favour: float, device: str) -> None:
    from speechgpt2 import config as configs
    from speechgpt2.codec.train import CodecTrainConfig, train
    from speechgpt2.corpus.codec_dataset import CorpusCrops
    from speechgpt2.corpus.phones import save_labels, saved_labels
    from speechgpt2.corpus.store import Corpus as SpeechCorpus

    settings = configs.load(CodecTrainConfig, config)
    settings = replace(settings, init=init or settings.init)
    source = CorpusCrops(SpeechCorpus.open(corpus), favour, phones=saved_labels(out))
    save_labels(out, source.phones)
    train(settings, source, str(out), resume, str(torch_device(device)))


def _lm(config: Path, corpus: Path, codec: str, out: Path, resume: bool, init: str | None, device: str) -> None:
    import torch

    from speechgpt2 import config as configs
    from speechgpt2.codec.model import Codec
    from speechgpt2.corpus import conversation_turns as turns
    from speechgpt2.corpus.conversation_dataset import ConversationSource
    from speechgpt2.corpus.lm_dataset import ExchangeSource, encode_corpus, going_on, new_model
    from speechgpt2.lm.model import SpeechLM
    from speechgpt2.lm.train import LMTrainConfig, train

    settings, dialogues = configs.load(LMTrainConfig, config), turns.open_corpus(corpus)
    speech_codec = Codec.from_pretrained(codec)
    codes = out / "codes.npy"
    encode_corpus(dialogues, speech_codec, codes)
    if init is None:
        model = new_model(settings, dialogues, speech_codec)
    else:
        model = going_on(SpeechLM.from_pretrained(init, torch.float32), settings, speech_codec)
    source = ConversationSource if turns.is_of_conversations(dialogues) else ExchangeSource
    train(settings, model, source(dialogues, codes, model.prompt), str(out), resume, str(torch_device(device)))
