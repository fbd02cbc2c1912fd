"""The models that `sg2 bench device` measures: of random weights, which are made on the device, or loaded.

Times do not depend on what a model says, but a model that ends its reply early, or never speaks, cannot be timed. So
replies are steered (`SteadyLM`): which token comes next is forced after all work of sampling is done.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from speechgpt2.bench.lm import RANDOM, placeholder_tokenizer, small_config
from speechgpt2.bench.machine import synchronize
from speechgpt2.codec import config as codec_presets
from speechgpt2.codec.config import CodecConfig
from speechgpt2.codec.model import Codec
from speechgpt2.lm.checkpoint import Checkpoint
from speechgpt2.lm.config import BackboneConfig, LMConfig, PatchDecoderConfig, released
from speechgpt2.lm.model import UNFORCED, SampledPatches, SpeechLM, initialize
from speechgpt2.lm.sampling import SamplingParams
from speechgpt2.lm.state import LMState
from speechgpt2.loading import MemoryPlan, Sources, free_memory, load, memory_errors, plan, plan_checkpoint
from speechgpt2.nn.quantized import KINDS, Quantization, quantize_model
from speechgpt2.nn.uninitialized import uninitialized

LARGE, SMALL, TINY = "qwen2.5-7b", RANDOM, "tiny"  # sizes of random weights
UNLIMITED = 1 << 30  # patches of a reply
PRECISION = "bfloat16"  # of random weights


class Sizes(NamedTuple):
    """The sizes of a model and its codec."""

    lm: LMConfig
    codec: CodecConfig


def sizes(name: str) -> Sizes | None:
    """Return the sizes that a model with random weights has; None if `name` is that of a real model."""
    if name == LARGE:
        return Sizes(released(), codec_presets.released())
    if name == SMALL:
        return Sizes(small_config(), codec_presets.released())
    if name == TINY:
        backbone = BackboneConfig(vocab=512, width=128, layers=2, heads=4, kv_heads=2, ffn=256)
        decoder = PatchDecoderConfig(width=128, layers=1, heads=2, ffn=128)
        small = codec_presets.mini()
        codec = replace(
            small,
            encoder_transformer=replace(small.encoder_transformer, layers=1, context=24),
            vq_transformer=replace(small.vq_transformer, layers=1, context=6),
            decoder_transformer=replace(small.decoder_transformer, context=24),
        )
        return Sizes(replace(released(), backbone=backbone, patch_decoder=decoder), codec)
    return None


class SteadyLM(SpeechLM):
    """Speaks without end in rows with an even seed, and writes without end in the others.

    Its first token of speech is the start of speech, and all others are fillers. Text and codes are sampled as ever.
    """

    @torch.no_grad()
    def sample(
        self,
        hidden: Tensor,
        state: LMState,
        sampling: SamplingParams,
        forced_text: Tensor | None = None,
        allowed: Tensor | None = None,
        speaks: bool = True,
    ) -> SampledPatches:
        """See `SpeechLM.sample`."""
        ids = self.prompt.special_ids
        starts = (sampling.seed % 2 == 0) & (state.speech_depth == 0)
        steady = torch.where(starts, ids.speech_start, ids.filler)
        if forced_text is not None:
            steady = torch.where(forced_text == UNFORCED, steady, forced_text)
        return super().sample(hidden, state, sampling, steady, allowed, speaks)


@dataclass(frozen=True)
class BenchModel:
    """A codec and a language model on a device.

    Attributes:
        plan: The memory that they need.
        seconds: How long it took to make or load both.
        weights: Precision of the language model's weights.
    """

    codec: Codec
    lm: SpeechLM
    plan: MemoryPlan
    seconds: float
    weights: str


def sources_of(name: str, codec: str | None, weights: str) -> Sources:
    """Return how a model is loaded with `weights` of a kind of `KINDS`, or as it is stored."""
    return Sources(name, codec, quantization=Quantization(weights) if weights in KINDS else None)  # type: ignore[arg-type]


def plan_model(name: str, codec: str | None, device: torch.device, weights: str = PRECISION) -> MemoryPlan:
    """Return the memory that a model needs on a device, without any weights.

    Args:
        name: Sizes of random weights, a built-in name, a folder or a Hugging Face id.
        codec: The codec, if it is not in the model's folder.
        device: Where it will be.
        weights: Their precision, if they are random or quantized.

    Raises:
        UserError: The model cannot be found or opened.
    """
    sources, found = sources_of(name, codec, weights), sizes(name)
    if found is None:
        return plan(sources, device)
    with uninitialized("meta", torch.bfloat16):
        lm = SpeechLM(found.lm, placeholder_tokenizer(found.lm))
    with uninitialized("meta"):
        empty_codec = Codec(found.codec)
    checkpoint = Checkpoint(Path(), found.lm, dict(lm.state_dict()), released=False)
    return plan_checkpoint(sources, checkpoint, empty_codec, device, free_memory(device))


def make_model(name: str, codec: str | None, device: torch.device, weights: str = PRECISION) -> BenchModel:
    """Make or load a model. The arguments and errors are those of `plan_model`.

    Random weights are drawn on the device in bfloat16, and quantized there; the host holds none of them.
    """
    planned, found, began = plan_model(name, codec, device, weights), sizes(name), time.perf_counter()
    with memory_errors(device):
        if found is None:
            made_codec, lm = load(sources_of(name, codec, weights), device)
            lm.__class__ = SteadyLM
        else:
            made_codec, lm = _random_codec(found.codec, device), _random_lm(found.lm, device)
            if weights in KINDS:
                quantize_model(lm, Quantization(weights))  # type: ignore[arg-type]
        synchronize(str(device))
    stored = weights if weights in KINDS or found is not None else str(lm.dtype).removeprefix("torch.")
    return BenchModel(made_codec, lm, planned, time.perf_counter() - began, stored)


def _random_lm(config: LMConfig, device: torch.device) -> SpeechLM:
    with uninitialized(device, torch.bfloat16):
        lm = SteadyLM(config, placeholder_tokenizer(config))
    initialize(lm)
    return lm.to(device).eval()


def _random_codec(config: CodecConfig, device: torch.device) -> Codec:
    with torch.device(device):
        codec = Codec(config)
    return codec.to(device).eval()


def product_count(config: LMConfig, filled: float, spoken: bool) -> float:
    """Return the floating-point operations of the language model's products in a step of one row.

    Args:
        config: The model's configuration.
        filled: Patches in the row's cache.
        spoken: Whether the patch has codes, which the patch decoder computes frame by frame.
    """
    b, d = config.backbone, config.patch_decoder
    attention = b.width * b.head_dim * (2 * b.heads + 2 * b.kv_heads)
    weights = b.layers * (attention + 3 * b.width * b.ffn)
    weights += b.vocab * b.width + config.patch_frames * d.width * b.width
    if spoken:
        layer = 4 * d.width * d.heads * d.head_dim + 3 * d.width * d.ffn
        frame = d.layers * layer + config.codebooks * config.codebook_size * d.width
        weights += config.patch_frames * frame + b.width * d.width
    return 2.0 * (weights + 2 * b.layers * b.heads * b.head_dim * filled)
