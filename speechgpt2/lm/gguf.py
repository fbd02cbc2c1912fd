"""Text models in GGUF files (llama.cpp): weights, sizes and tokenizer, as from a Hugging Face folder.

Quantised weights are expanded, one tensor at a time. Needs the package `gguf` of the extra `train`.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import re
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor

from speechgpt2.errors import UserError
from speechgpt2.extras import require
from speechgpt2.hub import StoredTensor

# GGUF's names of tensors -> those of Hugging Face
NAMES = {
    "token_embd": "model.embed_tokens", "output": "lm_head", "output_norm": "model.norm",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
IGNORED = ("rope_freqs.weight",)  # computed here
CONTROL = 3  # token type
# How the tokenizers of Qwen2 and Llama 3 split text; they differ in the number of digits in a token.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DIGITS = {"qwen2": "", "llama-bpe": "{1,3}", "llama3": "{1,3}"}


class GGUFModel:
    """An open file: `content` as of a `config.json`, `tensors` under the names of Hugging Face.

    Raises:
        UserError: If it is not a GGUF file, is cut off, or holds another kind of model.
    """

    def __init__(self, path: Path):
        package = require("gguf", "train")
        try:
            self.reader = package.GGUFReader(path)
        except (ValueError, OSError, IndexError, KeyError) as error:
            raise UserError(f"{path}: not a GGUF file, or cut off ({str(error).splitlines()[0][:80]})") from None
        self.path = path
        self.kind = self._field("general.architecture")
        self.content = self._config()
        heads, kv_heads = self.content["num_attention_heads"], self.content["num_key_value_heads"]
        rotated = {"attn_q": heads, "attn_k": kv_heads} if self.kind == "llama" else {}
        self.tensors: MutableMapping[str, Tensor | StoredTensor] = GGUFTensors(self.reader, path, rotated)

    def _field(self, name: str, default: Any = None) -> Any:
        field = self.reader.fields.get(name)
        if field is None:
            if default is None:
                raise UserError(f"{self.path}: lacks {name}")
            return default
        return field.contents()

    def _config(self) -> dict[str, Any]:
        size = lambda name, default=None: self._field(f"{self.kind}.{name}", default)  # noqa: E731
        heads = size("attention.head_count")
        config = {
            "model_type": self.kind,
            "hidden_size": size("embedding_length"),
            "num_hidden_layers": size("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": size("attention.head_count_kv", heads),
            "intermediate_size": size("feed_forward_length"),
            "rms_norm_eps": size("attention.layer_norm_rms_epsilon", 1e-6),
            "rope_theta": size("rope.freq_base", 10_000.0),
            "head_dim": size("attention.key_length", 0) or None,
            "tie_word_embeddings": not any(t.name == "output.weight" for t in self.reader.tensors),
        }
        if self._field(f"{self.kind}.rope.scaling.type", "none") not in ("none", ""):
            raise UserError(f"{self.path}: rotary scaling in a GGUF file is not supported; use the Hugging Face folder")
        return config

    def eos(self) -> str:
        """Return the end-of-sequence token."""
        return self._field("tokenizer.ggml.tokens")[int(self._field("tokenizer.ggml.eos_token_id"))]

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer. Raises `UserError` for kinds other than byte-level BPE of Qwen2 and Llama 3."""
        pre = self._field("tokenizer.ggml.pre", "unknown")
        if self._field("tokenizer.ggml.model") != "gpt2" or pre not in DIGITS:
            raise UserError(f"{self.path}: its tokenizer ({pre}) is not supported; use the Hugging Face folder")
        tokens, kinds = self._field("tokenizer.ggml.tokens"), self._field("tokenizer.ggml.token_type")
        merges = [tuple(merge.split(" ", 1)) for merge in self._field("tokenizer.ggml.merges")]
        vocab = {token: i for i, token in enumerate(tokens)}
        tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=pre != "qwen2"))
        tokenizer.normalizer = normalizers.NFC()
        words = Regex(WORDS.replace("DIGITS", DIGITS[pre]))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(words, "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        control = [AddedToken(t, special=True, normalized=False) for t, kind in zip(tokens, kinds) if kind == CONTROL]
        tokenizer.add_special_tokens(control)
        return tokenizer


class GGUFTensors(MutableMapping[str, Tensor | StoredTensor]):
    """The tensors of a file, expanded to float32 when they are read."""

    def __init__(self, reader: Any, path: Path, rotated: dict[str, int]):
        self.rotated = rotated
        self.stored = {hugging_face_name(t.name, path): t for t in reader.tensors if t.name not in IGNORED}

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.stored[name]
        quants = require("gguf", "train").quants
        values = np.array(quants.dequantize(tensor.data, tensor.tensor_type), np.float32)  # not a view of the file
        heads = self.rotated.get(tensor.name.split(".")[-2])
        return unrotated(torch.from_numpy(values), heads) if heads else torch.from_numpy(values)

    def __setitem__(self, name: str, value: Tensor | StoredTensor) -> None:
        raise TypeError("the tensors of a file cannot be set")

    def __delitem__(self, name: str) -> None:
        del self.stored[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)


def hugging_face_name(name: str, path: Path) -> str:
    """Return the name of a tensor in a Hugging Face folder. Raises `UserError` for an unknown one."""
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if match is None or match[2] not in NAMES:
        raise UserError(f"{path}: the tensor {name} has no place in this model")
    layer = f"model.layers.{match[1]}." if match[1] else ""
    return f"{layer}{NAMES[match[2]]}.{match[3]}"


def unrotated(weight: Tensor, heads: int) -> Tensor:
    """Undo llama.cpp's order of rows of Llama's queries and keys, in which rotated pairs are neighbours."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)
