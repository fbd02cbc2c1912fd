"""Just enough of ONNX's format (protobuf) to write a model that hears tones, so that no test needs the onnx package."""

from __future__ import annotations

import numpy as np


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | str | bytes) -> bytes:
    """One field of a message: a number, a text, or bytes (a message too)."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def tensor(name: str, values: np.ndarray) -> bytes:
    kind = 7 if values.dtype == np.int64 else 1
    dims = b"".join(field(1, size) for size in values.shape)
    return dims + field(2, kind) + field(8, name) + field(9, values.tobytes())


def node(kind: str, inputs: list[str], output: str, **lists: list[int]) -> bytes:
    names = b"".join(field(1, name) for name in inputs) + field(2, output)
    attributes = b"".join(
        field(5, field(1, key) + b"".join(field(8, each) for each in values) + field(20, 7))
        for key, values in lists.items()
    )
    return names + field(4, kind) + attributes


def value(name: str, *sizes: int | str, kind: int = 1) -> bytes:
    """An input or output; `kind` is 1 for float32, 7 for int64."""
    dims = b"".join(field(1, field(1 if isinstance(size, int) else 2, size)) for size in sizes)
    return field(1, name) + field(2, field(1, field(1, kind) + field(2, dims)))


def tone_model(tones: dict[int, float], vocabulary: int, blank: int, size: int = 400, stride: int = 320) -> bytes:
    """A model "input_values" [1, N] at 16 kHz -> "logits" [1, T, vocabulary] with token k at `tones[k]` Hz."""
    time = np.arange(size) / 16_000
    waves = np.stack([f(2 * np.pi * hertz * time) for hertz in tones.values() for f in (np.cos, np.sin)]) / size
    sums = np.zeros((vocabulary, len(waves), 1), np.float32)
    bias = np.full(vocabulary, -20.0, np.float32)
    for number, token in enumerate(tones):
        sums[token, 2 * number : 2 * number + 2], bias[token] = 40.0, 0.0
    bias[blank] = 4.0
    graph = [
        node("Reshape", ["input_values", "shape"], "wave"),
        node("Conv", ["wave", "waves"], "parts", strides=[stride]),
        node("Mul", ["parts", "parts"], "squares"),
        node("Conv", ["squares", "sums", "bias"], "scores"),
        node("Transpose", ["scores"], "logits", perm=[0, 2, 1]),
    ]
    constants = {
        "shape": np.array([1, 1, -1], np.int64), "waves": waves[:, None].astype(np.float32), "sums": sums, "bias": bias,
    }  # fmt: skip
    body = b"".join(field(1, each) for each in graph) + field(2, "tones")
    body += b"".join(field(5, tensor(name, array)) for name, array in constants.items())
    body += field(11, value("input_values", 1, "samples")) + field(12, value("logits", 1, "steps", vocabulary))
    return field(1, 8) + field(7, body) + field(8, field(1, "") + field(2, 13))
