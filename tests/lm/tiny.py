"""A tiny language model with random weights and a tokenizer of a few words."""

from __future__ import annotations

from functools import cache

import torch
from tokenizers import Tokenizer

from speechgpt2.lm.config import BackboneConfig, LMConfig, PatchDecoderConfig, PromptConfig
from speechgpt2.lm.model import SpeechLM
from speechgpt2.lm.tokenizer import train_tokenizer
from speechgpt2.types import Patches

TEXTS = [
    "You should answer the user's speech questions in text.",
    "Hello there, what is the weather like? It's 25 degrees.",
    "[|SpeechGPT|]: [|Human|]: ###\n",
    "你好，今天天气怎么样？嘿！终于等到你了！",
] * 3


@cache
def tokenizer_json() -> str:
    return train_tokenizer(TEXTS, 400).to_str()


def tiny_tokenizer() -> Tokenizer:
    return Tokenizer.from_str(tokenizer_json())


def tiny_config(
    chain_of_modality: bool = False,
    chained: bool = False,
    draft_tokens: int = 0,
    tools: bool = False,
    transcribes: bool = False,
    follows_instructions: bool = False,
    min_confidence: float | None = None,
    **backbone,
) -> LMConfig:
    sizes = {"vocab": tiny_tokenizer().get_vocab_size(), "width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 48}
    return LMConfig(
        BackboneConfig(**{**sizes, **backbone}),
        PatchDecoderConfig(width=16, layers=2, heads=2, ffn=32, chained=chained),
        PromptConfig(
            chain_of_modality=chain_of_modality,
            tools=tools,
            transcribes=transcribes,
            follows_instructions=follows_instructions,
            min_confidence=min_confidence,
        ),
        draft_tokens=draft_tokens,
    )


def tiny_lm(seed: int = 0, std: float = 0.3, **options) -> SpeechLM:
    """Weights are larger than at the start of training, so that what a token sees makes a difference."""
    torch.manual_seed(seed)
    lm = SpeechLM(tiny_config(**options), tiny_tokenizer()).eval()
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=std)
    return lm


def random_patches(lm: SpeechLM, batch: int, patches: int, seed: int = 0) -> Patches:
    """Text everywhere, speech in some positions."""
    generator, c = torch.Generator().manual_seed(seed), lm.config
    text = torch.randint(0, c.backbone.vocab, (batch, patches), generator=generator)
    codes = torch.randint(0, c.codebook_size, (batch, patches, c.patch_frames, c.codebooks), generator=generator)
    silent = torch.rand(batch, patches, generator=generator) < 0.5
    return Patches(text, torch.where(silent[..., None, None], c.no_speech, codes))
