"""The released layout of a language model: a Hugging Face folder of a text model with speech tensors beside it.

The released SpeechGPT-2.0-preview-7B has a Qwen2.5 backbone. Another family of lm/families/ loads the same way. This
module alone knows the released names of the speech tensors.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from speechgpt2 import config as configs
from speechgpt2.errors import UserError
from speechgpt2.lm.config import LMConfig, PatchDecoderConfig, PromptConfig
from speechgpt2.lm.families import read_backbone
from speechgpt2.lm.huggingface import Tensors, read_eos, shape_of, stack_places, text_places, tie

if TYPE_CHECKING:
    from speechgpt2.lm.model import SpeechLM

DTYPE = torch.bfloat16  # in which the reference computes, although its files hold float32
PATCH_HEADS = 16  # of the released patch decoder; its files do not state it


def read_config(folder: Path, tensors: Tensors, patch_heads: int | None) -> LMConfig:
    """Read the sizes from `config.json` and, where it does not state them, from the weights.

    Args:
        folder: The checkpoint's folder.
        tensors: Its tensors (`huggingface.open_tensors`).
        patch_heads: Attention heads of the patch decoder; None means the released 16.

    Raises:
        UserError: If something is missing or not supported.
    """
    path = folder / "config.json"
    content = configs.read(path)
    if not any(name.startswith("local_transformer.") for name in tensors):
        raise UserError(f"{folder}: not a speech model, it holds no patch decoder (local_transformer.*)")
    vocab = shape_of(tensors, "model.embed_tokens.weight", folder)[0]
    ffn, width = shape_of(tensors, "local_transformer.layers.0.mlp.gate_proj.weight", folder)
    backbone = read_backbone(content, vocab, path)
    decoder = PatchDecoderConfig(
        width,
        len({match[1] for name in tensors if (match := re.match(r"local_transformer\.layers\.(\d+)\.", name))}),
        patch_heads or PATCH_HEADS,
        ffn,
        rope_theta=backbone.rope_theta,
        norm_eps=backbone.norm_eps,
        attention_bias=backbone.attention_bias,
        qk_norm=backbone.qk_norm,
    )
    return LMConfig(
        backbone,
        decoder,
        # The text model was trained to call tools and to follow instructions.
        PromptConfig(tools=True, follows_instructions=True, eos=read_eos(folder)),
        patch_frames=content.get("group_size", 3),
        codebooks=content.get("n_vq", 3),
        codebook_size=content.get("speech_vocab_size", 1025) - 1,
    )


def drop_tied(model: SpeechLM, tensors: Tensors, folder: Path) -> None:
    """Drop stored heads that are tied to embeddings. Raises `UserError` if one differs from its embedding."""
    pairs = [
        (f"local_transformer_lm_heads.{k}.weight", f"speech_embedddings.{k}.weight")
        for k in range(model.config.codebooks)
    ]
    if model.text_head is None:
        pairs.append(("lm_head.weight", "model.embed_tokens.weight"))
    tie(tensors, pairs, folder)


def places(model: SpeechLM) -> dict[str, Tensor]:
    """Return where each released tensor belongs: stored name -> view of a parameter of `model`."""
    decoder = model.patch_decoder
    found = text_places(model.text_embedding, model.text_head, model.backbone)
    found |= stack_places("local_transformer", decoder.stack)
    found |= {f"speech_embedddings.{k}.weight": table for k, table in enumerate(decoder.codes.table)}
    found["speech_group_downcast.weight"] = model.patch_projector.weight
    found["hidden_states_downcast.weight"] = decoder.enter.weight
    return found
