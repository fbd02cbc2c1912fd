"""The command line on a tiny random model: what it writes, and what becomes of everything that can go wrong."""

import io
import json
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from speechgpt2 import audio
from speechgpt2.cli import app
from speechgpt2.codec import config as presets
from speechgpt2.codec.config import CodecConfig, HarmonicConfig, MelConfig
from speechgpt2.codec.model import Codec
from speechgpt2.nn.convnext import ConvNeXtConfig
from speechgpt2.nn.transformer import TransformerConfig
from speechgpt2.types import SAMPLE_RATE
from tests.lm.tiny import tiny_lm

MODEL = ["--model", "tiny", "--device", "cpu"]
CODEC = ["--codec", "tiny", "--device", "cpu"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder with a codec and a language model that fit each other; the weights are noise."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    transformer = TransformerConfig(16, 2, 1, 32, context=9)
    convnext = ConvNeXtConfig((1,), (16,))
    config = CodecConfig(
        MelConfig(20), convnext, transformer, presets.QuantizerConfig(), transformer, transformer, convnext, HarmonicConfig()
    )
    Codec(config).save_pretrained(folder)
    tiny_lm(draft=True).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def desk(tiny, tmp_path, monkeypatch):
    """Every test works in a folder of its own, which holds the model as `tiny` and a second of sound as `in.wav`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").symlink_to(tiny)
    tone = 0.3 * np.sin(2 * np.pi * 220 * np.arange(SAMPLE_RATE) / SAMPLE_RATE)
    audio.save("in.wav", tone)
    return tmp_path


def sg2(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def fails(*arguments, leaves=()):
    """Run a command that must fail as a person's mistake; returns its one line."""
    before = {path.name for path in AT.iterdir()} if (AT := __import__("pathlib").Path()) else set()
    result = sg2(*arguments, code=2)
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    assert {path.name for path in AT.iterdir()} == before | set(leaves)
    return lines[0]
