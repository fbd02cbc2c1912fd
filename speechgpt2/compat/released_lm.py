"""The released language model, a Hugging Face folder on a Qwen2 base, into ours.

Every released tensor has a place that is a view of one of our parameters (q, k and v are parts of one matrix, say),
and is copied there straight from the mapped file, so the weights are never held twice.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechgpt2 import config as configs
from speechgpt2 import hub
from speechgpt2.errors import UserError
from speechgpt2.lm.backbone import CausalStack
from speechgpt2.lm.config import BackboneConfig, LMConfig, PatchDecoderConfig, PromptConfig
from speechgpt2.lm.model import SpeechLM

PATCH_HEADS = 16  # of the released patch decoder; its files do not say
IGNORED = re.compile(r"\.rotary_emb\.inv_freq$")


def load_released_lm(
    folder: str | Path,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    patch_heads: int | None = None,
) -> SpeechLM:
    """Read the folder; `dtype` None: as stored.

    Errors: `UserError` naming the first tensor that is missing, left over or misshapen.
    """
    folder = Path(folder)
    tensors = read_tensors(folder)
    config = read_config(folder, tensors, patch_heads or PATCH_HEADS)
    with torch.device("meta"):
        model = SpeechLM(config, hub.load_tokenizer(folder))
    model = model.to(dtype or tensors["model.embed_tokens.weight"].dtype).to_empty(device=device)
    fill(model, tensors, folder)
    return model.eval()


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of the folder's shards, mapped from the files. Errors: `UserError`."""
    tensors: dict[str, Tensor] = {}
    for path in shards(folder):
        tensors |= read_shard(path)
    return {name: tensor for name, tensor in tensors.items() if not IGNORED.search(name)}


def shards(folder: Path) -> list[Path]:
    """The weight files: named by an index, or a single one; safetensors before PyTorch's own. Errors: `UserError`."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if index.is_file():
            try:
                files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            except (ValueError, KeyError, TypeError, AttributeError):
                raise UserError(f"{index}: not an index of weight files") from None
            return [folder / file for file in files]
        if (folder / name).is_file():
            return [folder / name]
    raise UserError(f"{folder}: holds neither model.safetensors nor pytorch_model.bin, nor an index of shards")


def read_shard(path: Path) -> dict[str, Tensor]:
    """The tensors of one file; only tensors are ever read from a pickle. Errors: `UserError` if absent or damaged."""
    if not path.is_file():
        raise UserError(f"{path}: no such file, though the folder's index names it")
    if path.suffix == ".safetensors":
        return hub.load_tensors(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0][:120]})") from None


def read_config(folder: Path, tensors: dict[str, Tensor], patch_heads: int) -> LMConfig:
    """Sizes from `config.json` and, where it is silent, from the weights. Errors: `UserError`."""
    path = folder / "config.json"
    content = configs.read(path)
    if not isinstance(content, dict) or content.get("model_type") != "qwen2":
        raise UserError(f"{path}: not the configuration of a Qwen2 model")
    if content.get("use_sliding_window") or content.get("rope_scaling"):
        raise UserError(f"{path}: sliding windows and rotary scaling are not supported")
    shape = {name: _shape(tensors, name, folder) for name in _SIZING}
    rope = content.get("rope_parameters") or content
    base, eps = float(rope.get("rope_theta", 10_000.0)), float(content.get("rms_norm_eps", 1e-6))
    layers = {
        re.split(r"\.layers\.", name)[1].split(".")[0]
        for name in tensors
        if name.startswith("local_transformer.layers.")
    }
    try:
        backbone = BackboneConfig(
            vocab=shape["model.embed_tokens.weight"][0],
            width=content["hidden_size"],
            layers=content["num_hidden_layers"],
            heads=content["num_attention_heads"],
            kv_heads=content.get("num_key_value_heads") or content["num_attention_heads"],
            ffn=content["intermediate_size"],
            rope_base=base,
            norm_eps=eps,
            tied_head=bool(content.get("tie_word_embeddings", False)),
        )
    except KeyError as error:
        raise UserError(f"{path}: missing key {error}") from None
    ffn, width = shape["local_transformer.layers.0.mlp.gate_proj.weight"]
    return LMConfig(
        backbone,
        PatchDecoderConfig(width, len(layers), patch_heads, ffn, base, eps),
        PromptConfig(tools=True, eos=read_eos(folder)),  # its base, Qwen2.5, was taught to call them
        patch_frames=content.get("group_size", 3),
        codebooks=content.get("n_vq", 3),
        codebook_size=content.get("speech_vocab_size", 1025) - 1,
    )


_SIZING = ("model.embed_tokens.weight", "local_transformer.layers.0.mlp.gate_proj.weight")


def _shape(tensors: dict[str, Tensor], name: str, folder: Path) -> torch.Size:
    if name not in tensors:
        raise UserError(f"{folder}: the checkpoint lacks {name}")
    return tensors[name].shape


def read_eos(folder: Path) -> str:
    """The tokenizer's end-of-sequence token, from the files beside it."""
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            content: Any = configs.read(folder / name)
            eos = content.get("eos_token") if isinstance(content, dict) else None
            if eos:
                return eos["content"] if isinstance(eos, dict) else eos
    return PromptConfig().eos


@torch.no_grad()
def fill(model: SpeechLM, tensors: dict[str, Tensor], folder: Path) -> None:
    """Copy every tensor to its place, letting go of each. Errors: `UserError`."""
    tie(tensors, model, folder)
    for name, place in places(model).items():
        if name not in tensors:
            raise UserError(f"{folder}: the checkpoint lacks {name}")
        tensor = tensors.pop(name)
        if tensor.shape != place.shape:
            raise UserError(f"{folder}: {name} is {list(tensor.shape)}, expected {list(place.shape)}")
        place.copy_(tensor)
    if tensors:
        raise UserError(f"{folder}: the checkpoint holds {min(tensors)}, which has no place in this model")


def tie(tensors: dict[str, Tensor], model: SpeechLM, folder: Path) -> None:
    """Tied heads may be stored as well, or instead. Errors: `UserError` if they differ from what they are tied to."""
    pairs = [
        (f"local_transformer_lm_heads.{k}.weight", f"speech_embedddings.{k}.weight")
        for k in range(model.config.codebooks)
    ]
    if model.text_head is None:
        pairs.append(("lm_head.weight", "model.embed_tokens.weight"))
    for head, embedding in pairs:
        stored = tensors.pop(head, None)
        if stored is not None and not torch.equal(stored, tensors.setdefault(embedding, stored)):
            raise UserError(f"{folder}: {head} differs from {embedding}, to which it should be tied")


def places(model: SpeechLM) -> dict[str, Tensor]:
    """Where each released tensor goes: views of our parameters."""
    decoder = model.patch_decoder
    found = {
        "model.embed_tokens.weight": model.text_embedding.weight,
        "speech_group_downcast.weight": model.patch_projector.weight,
        "hidden_states_downcast.weight": decoder.enter.weight,
    }
    if model.text_head is not None:
        found["lm_head.weight"] = model.text_head.weight
    found |= {f"speech_embedddings.{k}.weight": table for k, table in enumerate(decoder.codes.table)}
    return found | _stack_places("model", model.backbone) | _stack_places("local_transformer", decoder.stack)


def _stack_places(prefix: str, stack: CausalStack) -> dict[str, Tensor]:
    c = stack.config
    parts = (c.heads * c.head_dim, c.kv_heads * c.head_dim, c.kv_heads * c.head_dim)
    found: dict[str, Tensor] = {f"{prefix}.norm.weight": stack.norm.weight}
    for i, layer in enumerate(stack.layers):
        at, ours = f"{prefix}.layers.{i}", dict(layer.named_parameters())
        for name, weight, bias in zip(
            "qkv", ours["attention.qkv.weight"].split(parts), ours["attention.qkv.bias"].split(parts), strict=True
        ):
            found[f"{at}.self_attn.{name}_proj.weight"], found[f"{at}.self_attn.{name}_proj.bias"] = weight, bias
        gate, up = ours["ffn.gate_up.weight"].chunk(2)
        found |= {
            f"{at}.self_attn.o_proj.weight": ours["attention.out.weight"],
            f"{at}.mlp.gate_proj.weight": gate,
            f"{at}.mlp.up_proj.weight": up,
            f"{at}.mlp.down_proj.weight": ours["ffn.down.weight"],
            f"{at}.input_layernorm.weight": ours["attention_norm.weight"],
            f"{at}.post_attention_layernorm.weight": ours["ffn_norm.weight"],
        }
    return found
