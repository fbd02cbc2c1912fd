"""Read the weights of a checkpoint into a language model, and write them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from speechgpt2 import config as configs
from speechgpt2 import hub
from speechgpt2.errors import UserError
from speechgpt2.lm import huggingface, released
from speechgpt2.lm.checkpoint import QUANTIZATION_FILE, VERSION, WEIGHTS_FILE, Checkpoint, QuantizedFile
from speechgpt2.nn.quantized import Quantizable, Quantization, QuantizedMatrix, quantizable, quantize_module
from speechgpt2.nn.uninitialized import return_memory

if TYPE_CHECKING:
    from speechgpt2.lm.model import SpeechLM


def read_weights(
    model: SpeechLM, checkpoint: Checkpoint, device: torch.device, quantization: Quantization | None
) -> None:
    """Read all weights into `model`, which has the precision to load.

    Args:
        model: The model, with weights of any value.
        checkpoint: Where they are.
        device: Where quantized matrices go.
        quantization: How to quantize matrices as they are read.

    Raises:
        UserError: If the weights are damaged or do not fit.
    """
    folder = checkpoint.folder
    if checkpoint.quantization is not None:
        _map_quantized(model, checkpoint, device)
        return
    if checkpoint.released:
        places, tensors = released.places(model), dict(checkpoint.tensors)
        released.drop_tied(model, tensors, folder)
    else:
        places, tensors = dict(model.state_dict()), dict(checkpoint.tensors)
        hub.check_fit(places, tensors, str(folder))
        same = all(tensor.dtype == model.dtype for tensor in tensors.values())
        if same and quantization is None and model.device.type == "cpu":
            # Mapped weights are read when they are needed, and processes share them.
            mapped = hub.load_tensors(folder / WEIGHTS_FILE)
            stored = hub.open_tensors(folder / WEIGHTS_FILE)
            ours = {name: mapped[file] for name, file in zip(checkpoint.tensors, stored, strict=True)}
            hub.load_into(model, ours, str(folder), adopt=True)
            return
    filled = None if quantization is None else _quantizer(model, quantization, device)
    huggingface.fill(places, tensors, folder, filled)


def _map_quantized(model: SpeechLM, checkpoint: Checkpoint, device: torch.device) -> None:
    """Map the tensors of a quantized folder into `model`, and move its matrices to `device`."""
    mapped = hub.load_tensors(checkpoint.folder / WEIGHTS_FILE)
    quantized = set[str]()
    for at, module in quantizable(model):
        for name, weight in module.unquantized().items():
            key, (rows, columns) = f"{at}{name}", weight.shape
            names = f"{key}.values", f"{key}.scales"
            if not mapped.keys() >= set(names):
                raise UserError(f"{checkpoint.folder}: the checkpoint lacks {key}, quantized")
            parts = [mapped.pop(name) for name in names]
            values, scales = (part if part.data_ptr() % hub.ALIGNMENT == 0 else part.clone() for part in parts)
            module.set_quantized(name, QuantizedMatrix(values, scales, rows, columns).to(device))
            quantized.add(key)
    others = {name: tensor for name, tensor in model.state_dict().items() if name not in quantized}
    hub.check_fit(others, mapped, str(checkpoint.folder))
    huggingface.fill(others, dict(mapped), checkpoint.folder)


def _quantizer(model: SpeechLM, quantization: Quantization, device: torch.device) -> Callable[[int], None]:
    """Return what quantizes the matrices in the storage at an address, once they are loaded."""
    owners: dict[int, list[tuple[Quantizable, str]]] = {}
    for _, module in quantizable(model):
        for name, weight in module.unquantized().items():
            owners.setdefault(weight.untyped_storage().data_ptr(), []).append((module, name))

    def filled(address: int) -> None:
        for module, name in owners.get(address, ()):
            quantize_module(module, name, quantization, device)
            return_memory()

    return filled


def save_weights(model: SpeechLM, folder: Path, dtype: torch.dtype | None) -> None:
    """Write `lm.safetensors`, in `dtype` if given, and for a quantized model `quantization.json`."""
    state = {name: t.to(dtype or t.dtype) for name, t in model.state_dict().items()}
    matrices = {f"{at}{name}": m for at, module in quantizable(model) for name, m in module.quantized().items()}
    for name, matrix in matrices.items():
        state.pop(name, None)
        state |= {f"{name}.values": matrix.values, f"{name}.scales": matrix.scales}
    if not matrices:
        hub.save_tensors(folder / WEIGHTS_FILE, state)
        return
    int4 = [matrix for matrix in matrices.values() if matrix.kind == "int4"]
    stated = Quantization("int4", int4[0].group) if int4 else Quantization("int8")
    configs.dump(QuantizedFile(VERSION, stated.kind, stated.group), folder / QUANTIZATION_FILE)
    hub.save_aligned(folder / WEIGHTS_FILE, state)
