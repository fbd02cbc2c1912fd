"""Hugging Face folders of text models: their weight files, the names in them and the tokenizer's end of sequence.

Each stored tensor has a place, which is a view of one of our parameters: q, k and v are parts of one matrix, for
example. Tensors are copied to their places straight from the files, block by block, so the weights are never in memory
twice.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from speechgpt2 import config as configs
from speechgpt2 import hub
from speechgpt2.errors import UserError
from speechgpt2.hub import StoredTensor
from speechgpt2.lm.backbone import DecoderStack
from speechgpt2.lm.config import PromptConfig

Tensors = MutableMapping[str, Tensor | StoredTensor]  # by stored name

IGNORED = re.compile(r"\.rotary_emb\.inv_freq$")  # computed here


def open_tensors(folder: Path) -> Tensors:
    """Open all tensors of the folder's weight files. Raises `UserError` if a file is absent or damaged."""
    tensors: dict[str, Tensor | StoredTensor] = {}
    for path in weight_files(folder):
        tensors |= open_weight_file(path)
    return {name: tensor for name, tensor in tensors.items() if not IGNORED.search(name)}


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files: the shards that an index names, or a single file; safetensors go first.

    Raises:
        UserError: If there are none, or the index is damaged.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if index.is_file():
            return hub.read_index(index)
        if (folder / name).is_file():
            return [folder / name]
    raise UserError(f"{folder}: holds neither model.safetensors nor pytorch_model.bin, nor an index of shards")


def open_weight_file(path: Path) -> Mapping[str, Tensor | StoredTensor]:
    """Open the tensors of one file. From a pickle only tensors are read, and no code is executed.

    Raises:
        UserError: If the file is absent or damaged.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file, though the folder's index names it")
    if path.suffix == ".safetensors":
        return hub.open_tensors(path)
    hub.check_file(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0][:120]})") from None


def read_eos(folder: Path) -> str:
    """Return the tokenizer's end-of-sequence token, from the files beside it."""
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            content: Any = configs.read(folder / name)
            eos = content.get("eos_token") if isinstance(content, dict) else None
            if eos:
                return eos["content"] if isinstance(eos, dict) else eos
    return PromptConfig().eos


def shape_of(tensors: Mapping[str, Tensor | StoredTensor], name: str, folder: Path) -> torch.Size:
    """Return the shape of a tensor that sizes the model. Raises `UserError` if it is missing."""
    if name not in tensors:
        raise UserError(f"{folder}: the checkpoint lacks {name}")
    return tensors[name].shape


def text_places(embedding: nn.Embedding, head: nn.Linear | None, backbone: DecoderStack) -> dict[str, Tensor]:
    """Return where each tensor of a text model belongs: stored name -> view of a parameter of ours."""
    places: dict[str, Tensor] = {"model.embed_tokens.weight": embedding.weight}
    if head is not None:
        places["lm_head.weight"] = head.weight
    return places | stack_places("model", backbone)


def stack_places(prefix: str, stack: DecoderStack) -> dict[str, Tensor]:
    """Return the places of a decoder stack whose stored names begin with `prefix`. All families share the names."""
    c = stack.config
    parts = (c.heads * c.head_dim, c.kv_heads * c.head_dim, c.kv_heads * c.head_dim)
    places: dict[str, Tensor] = {f"{prefix}.norm.weight": stack.norm.weight}
    for i, layer in enumerate(stack.layers):
        at, parameters = f"{prefix}.layers.{i}", dict(layer.named_parameters())
        for kind in ("weight", "bias") if c.attention_bias else ("weight",):
            for name, part in zip("qkv", parameters[f"attention.qkv.{kind}"].split(parts), strict=True):
                places[f"{at}.self_attn.{name}_proj.{kind}"] = part
        if c.qk_norm:
            places[f"{at}.self_attn.q_norm.weight"] = parameters["attention.q_norm.weight"]
            places[f"{at}.self_attn.k_norm.weight"] = parameters["attention.k_norm.weight"]
        gate, up = parameters["ffn.gate_up.weight"].chunk(2)
        places |= {
            f"{at}.self_attn.o_proj.weight": parameters["attention.out.weight"],
            f"{at}.mlp.gate_proj.weight": gate,
            f"{at}.mlp.up_proj.weight": up,
            f"{at}.mlp.down_proj.weight": parameters["ffn.down.weight"],
            f"{at}.input_layernorm.weight": parameters["attention_norm.weight"],
            f"{at}.post_attention_layernorm.weight": parameters["ffn_norm.weight"],
        }
    return places


def tie(tensors: Tensors, pairs: list[tuple[str, str]], folder: Path) -> None:
    """Drop each head that is tied to an embedding; files may store either name or both.

    Args:
        tensors: Stored tensors, changed in place.
        pairs: Names of a head and of the embedding that it is tied to.
        folder: Named in errors.

    Raises:
        UserError: If the two differ.
    """
    for head, embedding in pairs:
        stored = tensors.pop(head, None)
        if stored is not None and not _equal(stored, tensors.setdefault(embedding, stored)):
            raise UserError(f"{folder}: {head} differs from {embedding}, to which it should be tied")


def _equal(a: Tensor | StoredTensor, b: Tensor | StoredTensor) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)
    same = a is b or (a.shape == b.shape and a.dtype == b.dtype)
    return same and (a is b or all(map(torch.equal, a.blocks(), b.blocks())))


@torch.no_grad()
def fill(
    places: dict[str, Tensor], tensors: Tensors, folder: Path, filled: Callable[[int], None] | None = None
) -> None:
    """Copy every tensor to its place, and release both.

    Args:
        places: Stored name -> view of a parameter; emptied.
        tensors: The stored tensors; emptied.
        folder: Named in errors.
        filled: Called with the address of a storage when everything that belongs there is copied.

    Raises:
        UserError: If a tensor is missing, left over or of another shape.
    """
    left = Counter(place.untyped_storage().data_ptr() for place in places.values())
    for name in list(places):
        place = places.pop(name)
        if name not in tensors:
            raise UserError(f"{folder}: the checkpoint lacks {name}")
        address, tensor = place.untyped_storage().data_ptr(), tensors.pop(name)
        if tensor.shape != place.shape:
            raise UserError(f"{folder}: {name} is {list(tensor.shape)}, expected {list(place.shape)}")
        hub.copy_into(place, tensor)
        del place  # it would keep the storage alive
        left[address] -= 1
        if filled is not None and not left[address]:
            filled(address)
    if tensors:
        raise UserError(f"{folder}: the checkpoint holds {min(tensors)}, which has no place in this model")
