"""`sg2 train`: a run is a configuration, a corpus, and a folder that it can be resumed from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from speechgpt2.cli.common import Device, torch_device

Config = Annotated[Path, typer.Argument(help="A YAML file; see recipes/.", metavar="CONFIG.yaml")]
Corpus = Annotated[Path, typer.Option(help="A folder that `sg2 data` built.", metavar="FOLDER")]
RunFolder = Annotated[Path, typer.Option("--out", "-o", help="Checkpoints, logs and the model go here.", metavar="RUN")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from RUN's last checkpoint.")]


def codec(config: Config, corpus: Corpus, out: RunFolder, resume: Resume = False, device: Device = "auto") -> None:
    """Train a codec; the result is a codec folder in RUN."""
    from speechgpt2 import config as configs
    from speechgpt2.codec.train import CodecTrainConfig, train
    from speechgpt2.data.corpus import Corpus as SpeechCorpus
    from speechgpt2.data.crops import CorpusCrops

    settings = configs.load(CodecTrainConfig, config)
    source = CorpusCrops(SpeechCorpus.open(corpus))
    train(settings, source, str(out), resume, str(torch_device(device)))


def lm(config: Config, corpus: Corpus, out: RunFolder, resume: Resume = False, device: Device = "auto") -> None:
    """Train a language model on dialogues; the result is a model folder in RUN."""
    from speechgpt2.lm import train

    train.main(config, corpus, out, resume=resume, device=str(torch_device(device)))
