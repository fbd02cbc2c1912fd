"""A model family, and how its `config.json` becomes a backbone configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechgpt2.errors import UserError
from speechgpt2.lm.config import BackboneConfig, Llama3RopeScaling


@dataclass(frozen=True)
class Family:
    """One kind of decoder-only transformer.

    `model_type` is its name in `config.json`. The other fields are what its files do not state: whether queries, keys
    and values have biases, whether each head's queries and keys are normalised, and defaults. `unsupported` lists keys
    that must be absent or false, because the backbone cannot compute what they ask for.
    """

    model_type: str
    attention_bias: bool = False
    qk_norm: bool = False
    head_size: int | None = None
    unsupported: tuple[str, ...] = ()


def read_backbone_config(family: Family, content: dict[str, Any], vocab: int, path: Path) -> BackboneConfig:
    """Read the sizes and options in `content`, the parsed `config.json` at `path`.

    Raises:
        UserError: If a size is missing or an option is not supported.
    """
    for key in family.unsupported:
        if content.get(key):
            raise UserError(f"{path}: {key} is not supported")
    # Newer files keep theta and scaling together in rope_parameters, older ones apart.
    rope = content.get("rope_parameters") or content
    try:
        return BackboneConfig(
            vocab=vocab,
            width=content["hidden_size"],
            layers=content["num_hidden_layers"],
            heads=content["num_attention_heads"],
            kv_heads=content.get("num_key_value_heads") or content["num_attention_heads"],
            ffn=content["intermediate_size"],
            tied_embeddings=bool(content.get("tie_word_embeddings", False)),
            rope_theta=float(rope.get("rope_theta", 10_000.0)),
            rope_scaling=read_rope_scaling(content.get("rope_scaling") or content.get("rope_parameters"), path),
            norm_eps=float(content.get("rms_norm_eps", 1e-6)),
            attention_bias=family.attention_bias,
            qk_norm=family.qk_norm,
            head_size=content.get("head_dim") or family.head_size,
        )
    except KeyError as error:
        raise UserError(f"{path}: missing key {error}") from None


def read_rope_scaling(scaling: dict[str, Any] | None, path: Path) -> Llama3RopeScaling | None:
    """Read `rope_scaling`. Raises `UserError` for a kind other than Llama 3's."""
    kind = (scaling or {}).get("rope_type") or (scaling or {}).get("type") or "default"
    if scaling is None or kind == "default":
        return None
    if kind != "llama3":
        raise UserError(f"{path}: rotary scaling of type {kind!r} is not supported")
    return Llama3RopeScaling(
        float(scaling["factor"]),
        float(scaling["low_freq_factor"]),
        float(scaling["high_freq_factor"]),
        int(scaling["original_max_position_embeddings"]),
    )
