"""Codecs with random weights, small enough for tests."""

from __future__ import annotations

from dataclasses import replace

import torch

from speechgpt2.codec.config import CodecConfig, HarmonicConfig, MelConfig, QuantizerConfig
from speechgpt2.codec.model import Codec
from speechgpt2.nn.convnext import ConvNeXtConfig
from speechgpt2.nn.transformer import TransformerConfig


def tiny_config(**changes) -> CodecConfig:
    """A layer of each kind; `changes` are other fields."""
    transformer = TransformerConfig(16, 2, 1, 32, context=9)
    config = CodecConfig(
        mel=MelConfig(20),
        encoder_convnext=ConvNeXtConfig((1, 1), (12, 16)),
        encoder_transformer=transformer,
        quantizer=QuantizerConfig(3, 1024),
        vq_transformer=TransformerConfig(24, 2, 1, 48, context=5),
        decoder_transformer=transformer,
        decoder_convnext=ConvNeXtConfig((1,), (16,)),
        head=HarmonicConfig(harmonic_bands=30, noise_bands=10),
    )
    return replace(config, **changes)


def tiny_codec(**changes) -> Codec:
    torch.manual_seed(0)
    return Codec(tiny_config(**changes)).eval()


def narrow_codec() -> Codec:
    """A codec that is smaller still, for a whole training."""
    return tiny_codec(
        encoder_convnext=ConvNeXtConfig((1,), (16,)),
        vq_transformer=TransformerConfig(16, 2, 1, 32, context=5),
        head=HarmonicConfig(harmonic_bands=20, noise_bands=10),
    )
