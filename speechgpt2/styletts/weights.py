"""Read the weights in the ONNX file of Kokoro-82M (kokoro-onnx, int8).

The names of the file's nodes are paths of modules: ``/decoder/decoder/generator/resblocks.4/convs1.0/Conv_quant``. A
node's quantised matrix is (values − zero point) · scale. Biases and norms are initialisers under their own names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

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
        UserError: The file is no ONNX file, or the graph of another model.
    """
    model = StyleTTS(config)
    wanted, found = model.state_dict(), dict(parameters(path))
    wrong = [name for name, value in wanted.items() if name not in found or found[name].numel() != value.numel()]
    if wrong:
        raise UserError(f"{path} is not the graph of Kokoro-82M v1.0: it lacks {wrong[0]} in the expected size")
    model.load_state_dict({name: found[name].reshape(value.shape) for name, value in wanted.items()})
    return model


def parameters(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Names, as in `StyleTTS`, and float32 values; kernels lack the dimension of size one that `StyleTTS` gives them.

    Raises:
        MissingDependency: The package onnx is not installed.
        UserError: The file is no ONNX file.
    """
    onnx = require("onnx", "kokoro")
    try:
        graph = onnx.load(str(path)).graph
    except require("google.protobuf.message", "kokoro").DecodeError:
        raise UserError(f"{path} is no ONNX file") from None
    tensors = {tensor.name: tensor for tensor in graph.initializer}

    def value(name: str) -> np.ndarray:
        return onnx.numpy_helper.to_array(tensors[name]).astype(np.float32)

    def real(name: str, scale: str, zero: str, shape: tuple[int, ...] = (-1,)) -> np.ndarray:
        return (value(name) - value(zero).reshape(shape)) * value(scale).reshape(shape)

    for name in tensors:
        if _VECTOR.search(name):
            yield our_name(name), torch.from_numpy(value(name))
    dequantisers = {node.input[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    for node in graph.node:
        if _REUSED.search(node.name):
            continue
        if node.op_type == "DynamicQuantizeLSTM":
            _, inputs, recurrent, bias, *_, scale, zero, recurrent_scale, recurrent_zero = node.input
            per_direction = (2, 1, -1)
            inputs = real(inputs, scale, zero, per_direction)
            recurrent = real(recurrent, recurrent_scale, recurrent_zero, per_direction)
            for name, array in _lstm(inputs, recurrent, value(bias)):
                yield our_name(f"{_path(node.name)}.{name}"), torch.from_numpy(array)
            continue
        if node.op_type in ("MatMulInteger", "ConvInteger"):
            name = node.input[1]
            weight = real(name, name.removesuffix("_quantized") + "_scale", node.input[3])
        elif node.op_type == "Gather" and node.output[0] in dequantisers:
            _, scale, zero = dequantisers[node.output[0]].input
            weight = real(node.input[0], scale, zero)
        elif node.op_type in ("MatMul", "Conv", "ConvTranspose") and node.input[1] in tensors:
            weight = value(node.input[1])
        else:
            continue
        if node.op_type.startswith("MatMul"):
            weight = np.ascontiguousarray(weight.T)  # a linear layer's is [outputs, inputs]
        yield our_name(_path(node.name) + ".weight"), torch.from_numpy(weight)


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
        ours = inputs[direction].T, recurrent[direction].T, *np.split(bias[direction], 2)
        for name, array in zip(("weight_ih", "weight_hh", "bias_ih", "bias_hh"), ours, strict=True):
            i, o, f, c = np.split(array, 4)
            yield f"{name}_l0{suffix}", np.concatenate([i, f, c, o])
