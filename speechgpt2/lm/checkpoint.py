"""The configuration and the tensors of a language model's folder, before any weight is read.

    checkpoint = open_checkpoint("fnlp/SpeechGPT-2.0-preview-7B")
    checkpoint.config, checkpoint.bytes_in(torch.bfloat16, Quantization("int4"))

A quantized folder is one of this project with `quantization.json` beside the rest. In its weight file each quantized
matrix `NAME` is stored as `NAME.values` and `NAME.scales` (nn/quantized.py).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from speechgpt2 import config as configs
from speechgpt2 import hub
from speechgpt2.errors import UserError
from speechgpt2.lm import huggingface, released
from speechgpt2.lm.config import LMConfig
from speechgpt2.nn.quantized import Quantization

CONFIG_FILE, WEIGHTS_FILE, QUANTIZATION_FILE = "lm.json", "lm.safetensors", "quantization.json"
VERSION = 1  # of quantized files


@dataclass(frozen=True)
class QuantizedFile:
    """The content of `quantization.json`."""

    version: int
    kind: str
    group: int


@dataclass(frozen=True)
class Checkpoint:
    """A folder, its configuration and its tensors, which are not read yet.

    `released`: the layout is that of the released model, not that of this project. `quantization`: of its matrices.
    """

    folder: Path
    config: LMConfig
    tensors: huggingface.Tensors
    released: bool
    quantization: Quantization | None = None

    def dtype(self, wanted: torch.dtype | None, device: torch.device) -> torch.dtype:
        """Return the precision to load: `wanted`, else bfloat16 for the released layout, else the stored one.

        On a CPU, stored float16 is loaded as float32.
        """
        stored = next((t.dtype for t in self.tensors.values() if t.dtype.is_floating_point), torch.float32)
        if wanted is None and self.released:
            return released.DTYPE
        if wanted is None and stored == torch.float16 and device.type == "cpu" and self.quantization is None:
            return torch.float32
        return wanted or stored

    def bytes_in(self, dtype: torch.dtype, quantization: Quantization | None = None) -> int:
        """Return the bytes of the weights once loaded."""
        if self.quantization is not None:
            return sum(math.prod(t.shape) * t.dtype.itemsize for t in self.tensors.values())
        total = 0
        for name, tensor in self.tensors.items():
            if name.startswith("local_transformer_lm_heads."):
                continue  # tied to the code embeddings
            count = math.prod(tensor.shape)
            is_code_table = name.startswith("speech_embedddings.") or name == "patch_decoder.codes.table"
            if quantization is None or is_code_table or len(tensor.shape) != 2:
                total += count * dtype.itemsize
                if quantization is not None and is_code_table:  # the heads are quantized, the tables stay
                    heads = count // math.prod(tensor.shape[-2:])
                    total += heads * quantization.bytes_of(tensor.shape[-2] - 1, tensor.shape[-1])
            elif "embed" in name:
                total += Quantization("int8").bytes_of(*tensor.shape)
                total += quantization.bytes_of(*tensor.shape) if self.config.backbone.tied_embeddings else 0
            else:
                total += quantization.bytes_of(*tensor.shape)
        return total


def open_checkpoint(name: str | Path, patch_heads: int | None = None) -> Checkpoint:
    """Open a language model by built-in name, folder or Hugging Face id.

    Args:
        name: What to open.
        patch_heads: Attention heads of a released model's patch decoder, which its files do not state.

    Raises:
        UserError: If it is absent, damaged or of an unknown layout.
    """
    path = hub.resolve(name, CONFIG_FILE, "config.json")
    folder = path.parent
    if path.name != CONFIG_FILE:
        tensors = huggingface.open_tensors(folder)
        return Checkpoint(folder, released.read_config(folder, tensors, patch_heads), tensors, released=True)
    # The built-in weights store the draft head under the name "lookahead".
    stored = hub.open_tensors(folder / WEIGHTS_FILE)
    ours: huggingface.Tensors = {re.sub(r"^lookahead\.", "draft_head.", key): t for key, t in stored.items()}
    return Checkpoint(folder, configs.load(LMConfig, path), ours, False, _read_quantization(folder))


def _read_quantization(folder: Path) -> Quantization | None:
    path = folder / QUANTIZATION_FILE
    if not path.is_file():
        return None
    stated = configs.load(QuantizedFile, path)
    if stated.version != VERSION:
        raise UserError(
            f"{path}: quantized in version {stated.version} of the format, this program reads {VERSION}; "
            "convert the model again (sg2 convert --quantize)"
        )
    return Quantization(stated.kind, stated.group)  # type: ignore[arg-type]
