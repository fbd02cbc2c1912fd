"""Read the weights in the ONNX file of Kokoro-82M (kokoro-onnx, int8).

The names of the file's nodes are paths of modules: ``/decoder/decoder/generator/resblocks.4/convs1.0/Conv_quant``. A
node's quantised matrix is (values − zero point) · scale. Biases and norms are initialisers under their own names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from speechgpt2.errors import UserError
from speechgpt2.extras import require
from speechgpt2.styletts.model import StyleTTS, StyleTTSConfig

# The file's names and ours, where they differ: all that match are applied, in this order.
_NAMES = [
    (r"^(encoder|decoder)\.", ""),
    (r"^bert\.encoder\.albert_layer_groups\.0\.albert_layers\.0\.", "albert.layer."),
    (r"^(albert\.layer)\.attention\.LayerNorm", r"\1.attention_norm"),
    (r"^(albert\.layer)\.attention\.", r"\1."),
    (r"^(albert\.layer)\.full_layer_layer_norm", r"\1.output_norm"),
    (r"^bert\.encoder\.embedding_hidden_mapping_in", "albert.widen"),
    (r"^bert\.embeddings\.LayerNorm", "albert.norm"),
    (r"^bert\.embeddings\.", "albert."),
    (r"^bert_encoder", "albert_projection"),
    (r"^(text_encoder\.cnn\.\d)\.0\.", r"\1.conv."),
    (r"^(text_encoder\.cnn\.\d)\.1\.gamma", r"\1.norm.weight"),
    (r"^(text_encoder\.cnn\.\d)\.1\.beta", r"\1.norm.bias"),
    (r"^(?=(F0|N|F0_proj|N_proj|shared)\.)", "predictor."),  # called from outside the predictor, to which they belong
    (r"^predictor\.F0_proj", "predictor.pitch.3"),
    (r"^predictor\.N_proj", "predictor.energy.3"),
    (r"^predictor\.F0", "predictor.pitch"),
    (r"^predictor\.N\b", "predictor.energy"),
    (r"\.linear_layer", ""),
    (r"\.asr_res\.0", ".asr_res"),
    (r"\.l_linear", ".linear"),
    (r"(\.alpha\d\.\d)$", r"\1.alpha"),
]
_VECTOR = re.compile(r"\.(bias|gamma|beta)$|LayerNorm\.weight$|layer_norm\.weight$|\.alpha\d\.\d$")  # not quantised
_REUSED = re.compile(r"_\d+/")  # in the name of a node that uses the weights of an earlier one, as ALBERT's layers do


def load(path: Path, config: StyleTTSConfig = StyleTTSConfig()) -> StyleTTS:  # noqa: B008 (frozen)
    """Read a model.

    Raises:
        MissingDependency: The package onnx is not installed.
        UserError: The file is not an ONNX file, or the graph of another model.
    """
    model = StyleTTS(config)
    expected, values = model.state_dict(), dict(parameters(path))
    wrong = [name for name, value in expected.items() if name not in values or values[name].numel() != value.numel()]
    if wrong:
        raise UserError(f"{path} is not the graph of Kokoro-82M v1.0: it lacks {wrong[0]} in the expected size")
    model.load_state_dict({name: values[name].reshape(value.shape) for name, value in expected.items()})
    return model


def parameters(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield names, as in `StyleTTS`, and float32 values. Kernels lack the dimension of size one that `StyleTTS` adds.

    Raises:
        MissingDependency: The package onnx is not installed.
        UserError: The file is not an ONNX file.
    """
    onnx = require("onnx", "kokoro")
    try:
        graph = onnx.load(str(path)).graph
    except require("google.protobuf.message", "kokoro").DecodeError:
        raise UserError(f"{path} is not an ONNX file") from None
    weights = _GraphWeights({t.name: t for t in graph.initializer}, onnx.numpy_helper.to_array)
    for name in weights.tensors:
        if _VECTOR.search(name):
            yield our_name(name), torch.from_numpy(weights.value(name))
    dequantisers = {node.input[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    for node in graph.node:
        if _REUSED.search(node.name):
            continue
        if node.op_type == "DynamicQuantizeLSTM":
            for name, array in weights.lstm(node):
                yield our_name(f"{_path(node.name)}.{name}"), torch.from_numpy(array)
        elif (weight := weights.matrix(node, dequantisers)) is not None:
            yield our_name(_path(node.name) + ".weight"), torch.from_numpy(weight)


class _GraphWeights(NamedTuple):
    """The initialisers of a graph as float32 arrays."""

    tensors: Mapping[str, Any]
    to_array: Callable[[Any], np.ndarray]

    def value(self, name: str) -> np.ndarray:
        return self.to_array(self.tensors[name]).astype(np.float32)

    def dequantised(self, name: str, scale: str, zero: str, shape: tuple[int, ...] = (-1,)) -> np.ndarray:
        return (self.value(name) - self.value(zero).reshape(shape)) * self.value(scale).reshape(shape)

    def lstm(self, node: Any) -> Iterator[tuple[str, np.ndarray]]:
        """Yield the parameters of a quantised LSTM, by PyTorch's names."""
        _, inputs, recurrent, bias, *_, scale, zero, recurrent_scale, recurrent_zero = node.input
        per_direction = (2, 1, -1)
        inputs = self.dequantised(inputs, scale, zero, per_direction)
        recurrent = self.dequantised(recurrent, recurrent_scale, recurrent_zero, per_direction)
        return _lstm(inputs, recurrent, self.value(bias))

    def matrix(self, node: Any, dequantisers: Mapping[str, Any]) -> np.ndarray | None:
        """Return the matrix or kernel of a node; None for a node without one."""
        if node.op_type in ("MatMulInteger", "ConvInteger"):
            name = node.input[1]
            weight = self.dequantised(name, name.removesuffix("_quantized") + "_scale", node.input[3])
        elif node.op_type == "Gather" and node.output[0] in dequantisers:
            _, scale, zero = dequantisers[node.output[0]].input
            weight = self.dequantised(node.input[0], scale, zero)
        elif node.op_type in ("MatMul", "Conv", "ConvTranspose") and node.input[1] in self.tensors:
            weight = self.value(node.input[1])
        else:
            return None
        # The matrix of a linear layer is [outputs, inputs].
        return np.ascontiguousarray(weight.T) if node.op_type.startswith("MatMul") else weight


def _path(node: str) -> str:
    """The path of the module that a node belongs to. A member's name repeats that of its list: ``cnn.0/cnn.0.2``."""
    parts = node.strip("/").split("/")[:-1]
    return ".".join(part for part, inner in zip(parts, [*parts[1:], ""]) if not inner.startswith(part + "."))


def our_name(name: str) -> str:
    """The name in `StyleTTS` of a parameter of the file."""
    for pattern, ours in _NAMES:
        name = re.sub(pattern, ours, name)
    return name


def _lstm(inputs: np.ndarray, recurrent: np.ndarray, bias: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """PyTorch's parameters of a bidirectional LSTM.

    Args:
        inputs: `[2, C, 4H]`, the directions first.
        recurrent: `[2, H, 4H]`.
        bias: `[2, 8H]`, those of the inputs first.
    """
    for direction, suffix in enumerate(("", "_reverse")):
        arrays = inputs[direction].T, recurrent[direction].T, *np.split(bias[direction], 2)
        for name, array in zip(("weight_ih", "weight_hh", "bias_ih", "bias_hh"), arrays, strict=True):
            i, o, f, c = np.split(array, 4)
            yield f"{name}_l0{suffix}", np.concatenate([i, f, c, o])
