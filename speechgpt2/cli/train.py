"""`sg2 train`: a run is a configuration, a corpus, and a folder that it can be resumed from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from speechgpt2.cli.common import Device, torch_device

Config = Annotated[Path, typer.Argument(help="A YAML file; see recipes/.", metavar="CONFIG.yaml")]
Corpus = Annotated[Path, typer.Option(help="A folder that `sg2 data` built.", metavar="FOLDER")]
RunFolder = Annotated[Path, typer.Option("--out", "-o", help="Checkpoints, logs and the model go here.", metavar="RUN")]
CodecName = Annotated[str, typer.Option(help="A codec folder or a built-in name.", metavar="CODEC")]
Init = Annotated[str | None, typer.Option(help="A model folder to go on from.")]
Favour = Annotated[float, typer.Option(min=0.1, help="Draw the assistant's voices so many times more often.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from RUN's last checkpoint.")]


def codec(
    config: Config,
    corpus: Corpus,
    out: RunFolder,
    resume: Resume = False,
    init: Init = None,
    favour: Favour = 1.0,
    device: Device = "auto",
) -> None:
    """Train a codec; the result is a codec folder in RUN."""
    from dataclasses import replace

    from speechgpt2 import config as configs
    from speechgpt2.codec.train import CodecTrainConfig, train
    from speechgpt2.data.corpus import Corpus as SpeechCorpus
    from speechgpt2.data.crops import CorpusCrops

    settings = configs.load(CodecTrainConfig, config)
    settings = replace(settings, init=init or settings.init)
    source = CorpusCrops(SpeechCorpus.open(corpus), favour)
    train(settings, source, str(out), resume, str(torch_device(device)))


def lm(
    config: Config,
    corpus: Corpus,
    codec: CodecName,
    out: RunFolder,
    resume: Resume = False,
    init: Init = None,
    device: Device = "auto",
) -> None:
    """Train a language model on dialogues, heard through a codec; the result is a model folder in RUN.

    The corpus' codes are kept in RUN/codes.npy: they belong to this corpus and this codec.
    """
    import torch

    from speechgpt2 import config as configs
    from speechgpt2.codec.model import Codec
    from speechgpt2.data.corpus import Corpus as SpeechCorpus
    from speechgpt2.data.exchanges import ExchangeSource, encode_corpus, new_model
    from speechgpt2.lm.model import SpeechLM
    from speechgpt2.lm.train import LMTrainConfig, train

    settings, dialogues = configs.load(LMTrainConfig, config), SpeechCorpus.open(corpus)
    ears = Codec.from_pretrained(codec)
    codes = out / "codes.npy"
    if not codes.exists():
        out.mkdir(parents=True, exist_ok=True)
        encode_corpus(dialogues, ears, codes)
    model = SpeechLM.from_pretrained(init, torch.float32) if init else new_model(settings, dialogues, ears)
    train(settings, model, ExchangeSource(dialogues, codes, model.prompt), str(out), resume, str(torch_device(device)))
