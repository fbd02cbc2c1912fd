"""Model families of the backbone: Qwen2, Qwen3 and Llama, one file each.

A family says how to read a Hugging Face `config.json` of its kind. To add one, write a file like `qwen3.py` and list it
in `FAMILIES`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from speechgpt2.errors import UserError
from speechgpt2.lm.config import BackboneConfig
from speechgpt2.lm.families.family import Family, read_backbone_config
from speechgpt2.lm.families.llama import LLAMA
from speechgpt2.lm.families.qwen2 import QWEN2
from speechgpt2.lm.families.qwen3 import QWEN3

FAMILIES: dict[str, Family] = {family.model_type: family for family in (QWEN2, QWEN3, LLAMA)}


def read_backbone(content: Any, vocab: int, path: Path) -> BackboneConfig:
    """Read the backbone's configuration from a Hugging Face `config.json`.

    Args:
        content: The parsed file.
        vocab: Rows of the text embedding, which may be padded.
        path: The file, named in errors.

    Raises:
        UserError: If the family is unknown, or the model needs something that the backbone cannot compute.
    """
    model_type = content.get("model_type") if isinstance(content, dict) else None
    if model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise UserError(f"{path}: model_type {model_type!r} is not supported; supported families are {known}")
    return read_backbone_config(FAMILIES[model_type], content, vocab, path)
