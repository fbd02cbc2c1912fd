"""A codec that grows by layers keeps its codes and its audio, and the new layers learn."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from speechgpt2.codec import config as presets
from speechgpt2.codec.config import CodecConfig
from speechgpt2.codec.growth import SCALES, grow
from speechgpt2.codec.model import Codec
from speechgpt2.codec.train import CodecTrainConfig, CodecTrainer, Crops
from speechgpt2.errors import UserError
from speechgpt2.nn.convnext import ConvNeXtConfig
from speechgpt2.nn.transformer import TransformerConfig
from tests.codec.tiny import tiny_config


def small() -> CodecConfig:
    return tiny_config(quantizer=presets.QuantizerConfig(3, 64), delay=480, normalized_latent=True)


def deep() -> CodecConfig:
    config = small()
    return replace(
        config,
        encoder_convnext=replace(config.encoder_convnext, depths=(1, 3)),
        encoder_transformer=replace(config.encoder_transformer, layers=2),
        vq_transformer=replace(config.vq_transformer, layers=3),
        decoder_convnext=replace(config.decoder_convnext, depths=(4,)),
    )


@pytest.fixture
def codec() -> Codec:
    torch.manual_seed(0)
    return Codec(small()).eval()


def test_growing_changes_neither_codes_nor_audio(codec):
    pcm = 0.1 * torch.randn(2, 960 * 12)
    larger = grow(codec, deep()).eval()
    codes = codec.encode(pcm)
    assert sum(p.numel() for p in larger.parameters()) > 1.2 * sum(p.numel() for p in codec.parameters())
    assert torch.equal(larger.encode(pcm), codes)
    torch.testing.assert_close(larger.decode(codes), codec.decode(codes))


@pytest.mark.parametrize(
    "change",
    [{"vq_transformer": TransformerConfig(32, 2, 2, 48, context=5)}, {"decoder_convnext": ConvNeXtConfig((1,), (24,))}],
    ids=["wider", "other head input"],
)
def test_only_layers_can_be_added(codec, change):
    with pytest.raises(UserError, match="by layers only"):
        grow(codec, replace(deep(), **change))


def test_codec_cannot_lose_layers(codec):
    with pytest.raises(UserError, match="by layers only"):
        grow(grow(codec, deep()), small())


def test_deep_preset_is_mini_with_layers():
    mini, larger = (Codec(presets.PRESETS[name]()) for name in ("mini", "mini_deep"))
    assert torch.equal(grow(mini, presets.mini_deep()).quantizer.decode(torch.zeros(1, 2, 3, dtype=torch.long)),
                       mini.quantizer.decode(torch.zeros(1, 2, 3, dtype=torch.long)))  # fmt: skip
    assert 17e6 < sum(p.numel() for p in larger.parameters()) < 21e6


class Hum:
    """Crops of a hum, with one phone."""

    phones = ("", "m")

    def crops(self, random, batch, frames):
        n = torch.arange(frames * 960)
        pcm = (0.1 * torch.sin(2 * torch.pi * 150 * n / 24_000)).expand(batch, -1).contiguous()
        return Crops(pcm, pcm, torch.full((batch, 4 * frames), 150.0), torch.ones(batch, frames, dtype=torch.long))


def test_training_grows_its_first_codec_and_uses_the_new_layers(codec, tmp_path, monkeypatch):
    monkeypatch.setitem(presets.PRESETS, "deep", deep)
    codec.save_pretrained(tmp_path)
    config = CodecTrainConfig(init=str(tmp_path), grow_to="deep", delay=720, batch=2, frames=16, steps=4, warmup=1)
    trainer = CodecTrainer(config, Hum(), torch.device("cpu"))
    assert trainer.codec.config.vq_transformer.layers == 3 and trainer.codec.config.delay == 720
    new = {
        name: parameter
        for name, parameter in trainer.codec.named_parameters()
        if name not in dict(codec.named_parameters()) and name.rsplit(".", 1)[-1] in SCALES
    }
    assert new and not any(parameter.any() for parameter in new.values())
    for step in range(2):
        trainer.step(step)
    assert all(parameter.any() for parameter in new.values())


def test_growth_needs_a_codec_to_grow():
    with pytest.raises(UserError, match="grow_to needs init"):
        CodecTrainConfig(grow_to="mini_deep").new_codec()
