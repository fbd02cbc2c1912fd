"""Reading an ONNX file: every kind of node, and the real file against ONNX Runtime."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from speechgpt2.errors import UserError
from speechgpt2.styletts import weights
from speechgpt2.styletts.layers import BiLSTM
from tests import needs

onnx = needs.module("onnx", "kokoro")

HELLO = [
    0,
    50,
    83,
    54,
    156,
    31,
    3,
    16,
    50,
    157,
    39,
    16,
    69,
    123,
    16,
    52,
    63,
    16,
    62,
    83,
    46,
    156,
    24,
    6,
    0,
]  # "Hello, how are you today?"
RNG = np.random.default_rng(0)


def byte(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, np.uint8)


def save(path: Path, nodes: list, tensors: dict[str, np.ndarray], outputs: tuple = ()) -> Path:
    initialisers = [onnx.numpy_helper.from_array(array, name) for name, array in tensors.items()]
    graph = onnx.helper.make_graph(nodes, "graph", list(outputs), list(outputs), initialisers)
    onnx.save(onnx.helper.make_model(graph), str(path))
    return path


def node(kind: str, inputs: list[str], output: str, name: str):
    return onnx.helper.make_node(kind, inputs, [output], name)


def test_quantised_weights_are_read_under_the_names_of_their_modules(tmp_path):
    tensors = {
        "m_quantized": byte(4, 6), "m_zero_point": byte(6), "m_scale": RNG.random(6, np.float32),
        "k_quantized": byte(6, 4, 3), "k_zero_point": byte(1)[0], "k_scale": np.float32(0.25),
        "e_quantized": byte(9, 4), "e_scale": np.float32(0.5),
        "up": RNG.random((4, 6, 2), np.float32),
        "encoder.text_encoder.cnn.1.1.gamma": RNG.random(4, np.float32),
        "decoder.decoder.generator.resblocks.4.alpha1.2": RNG.random((1, 4, 1), np.float32),
        "an.int": np.array([1], np.int64),
    }  # fmt: skip
    albert = "/encoder/bert/encoder/albert_layer_groups.0/albert_layers.0/attention"
    path = save(
        tmp_path / "m.onnx",
        [
            node("MatMulInteger", ["x", "m_quantized", "x0", "m_zero_point"], "a", f"{albert}/query/MatMul_quant"),
            node("MatMulInteger", ["x", "gone_quantized", "x0", "m_zero_point"], "b", f"{albert}/query_7/MatMul_quant"),
            node("ConvInteger", ["x", "k_quantized", "x0", "k_zero_point"], "c", "/encoder/F0.1/conv1/Conv_quant"),
            node("Gather", ["e_quantized", "ids"], "d8", "/encoder/text_encoder/embedding/Gather_quant"),
            node("DequantizeLinear", ["d8", "e_scale", "k_zero_point"], "d", "dequantise"),
            node("ConvTranspose", ["x", "up"], "e", "/decoder/decoder/generator/ups.0/ConvTranspose"),
            node("ConvTranspose", ["x", "up"], "f", "/encoder/text_encoder/cnn.0/cnn.0.0/Conv"),
            node("MatMul", ["x", "y"], "g", "/encoder/MatMul"),
        ],
        tensors,
    )
    found = {name: value.numpy() for name, value in weights.parameters(path)}

    def real(name: str, zero: str) -> np.ndarray:
        return (tensors[name + "_quantized"].astype(np.float32) - tensors[zero]) * tensors[name + "_scale"]

    wanted = {
        "albert.layer.query.weight": real("m", "m_zero_point").T,
        "predictor.pitch.1.conv1.weight": real("k", "k_zero_point"),
        "text_encoder.embedding.weight": real("e", "k_zero_point"),
        "decoder.generator.ups.0.weight": tensors["up"],
        "text_encoder.cnn.0.conv.weight": tensors["up"],
        "text_encoder.cnn.1.norm.weight": tensors["encoder.text_encoder.cnn.1.1.gamma"],
        "decoder.generator.resblocks.4.alpha1.2.alpha": tensors["decoder.decoder.generator.resblocks.4.alpha1.2"],
    }
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, err_msg=name)


@needs.extra("server", "onnxruntime")
def test_lstm_equals_that_of_onnxruntime(tmp_path):
    import onnxruntime

    inputs, recurrent = byte(2, 3, 16), byte(2, 4, 16)
    bias, x = RNG.standard_normal((2, 32), np.float32), RNG.standard_normal((7, 1, 3), np.float32)
    zero, scale = np.array([120, 130], np.uint8), np.array([0.004, 0.006], np.float32)
    real = [
        ((q.astype(np.float32) - zero[:, None, None]) * scale[:, None, None]).transpose(0, 2, 1).copy()
        for q in (inputs, recurrent)
    ]
    values = {"W": real[0], "R": real[1], "B": bias}
    lstm = onnx.helper.make_node("LSTM", ["X", *values], ["Y"], hidden_size=4, direction="bidirectional")
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("X", [7, 1, 3]), ("Y", [7, 2, 1, 4]))
    ]
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in values.items()]
    dynamic = ["x", "W_q", "R_q", "B", "", "", "", "", "scale", "zero", "scale", "zero"]
    quantised = onnx.helper.make_node("DynamicQuantizeLSTM", dynamic, ["y"], "/encoder/text_encoder/lstm/LSTM_quant")
    file = {"W_q": inputs, "R_q": recurrent, "B": bias, "scale": scale, "zero": zero}
    graph = onnx.helper.make_graph([lstm], "graph", ends[:1], ends[1:], tensors)
    opset = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
    (wanted,) = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"X": x})
    ours = BiLSTM(3, 8)
    found = dict(weights.parameters(save(tmp_path / "lstm.onnx", [quantised], file)))
    ours.load_state_dict({name.removeprefix("text_encoder.lstm."): array for name, array in found.items()})
    with torch.no_grad():
        y = ours(torch.from_numpy(x[:, 0]))
    np.testing.assert_allclose(y.numpy(), wanted[:, :, 0].reshape(7, 8), atol=1e-5)


@pytest.mark.parametrize("content, message", [(b"\x0a\xff\xff", "is not an ONNX file"), (b"", "lacks albert")])
def test_other_files_are_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "other.onnx"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        weights.load(path)
    assert "\n" not in str(error.value)


@needs.model("SG2_KOKORO")
@needs.extra("server", "onnxruntime")
def test_real_file_speaks_as_in_onnxruntime():
    """The reference computes in int8, so its decoder gets the same frames, pitch, energy and source as ours."""
    import onnxruntime

    folder = Path(os.environ["SG2_KOKORO"])
    path = next(folder.glob("*.int8.onnx"))
    style = np.load(next(folder.glob("voices*")))["am_adam"].reshape(510, 256)[22]
    ids = np.array([HELLO])
    names = [
        "/encoder/Clip_output_0", "/encoder/MatMul_1_output_0", "/encoder/Reshape_output_0",
        "/encoder/Reshape_1_output_0", "/decoder/decoder/generator/Concat_3_output_0",
    ]  # fmt: skip
    graph = onnx.load(str(path))
    graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    reference = session.run(None, {"tokens": ids, "style": style[None], "speed": np.ones(1, np.float32)})
    samples, durations, frames, pitch, energy, source = (torch.from_numpy(each.squeeze()) for each in reference)

    model = weights.load(path).prepare(torch.device("cpu"), torch.float32)
    speech = model(torch.from_numpy(ids[0]), torch.from_numpy(style))
    assert (speech.durations - durations).abs().max() <= 1
    sound, manner = torch.from_numpy(style).chunk(2)
    with torch.inference_mode():
        steps = model.predictor.text_encoder(model.albert_projection(model.albert(torch.from_numpy(ids[0]))), manner)
        contours = model.predictor.contours(steps.repeat_interleave(durations.long(), 0), manner)
        generator = model.decoder.generator
        generator._spectrum = lambda samples: source.T.contiguous()
        found = model.decoder(frames.T.contiguous(), pitch, energy, sound)
    for ours, theirs, least in ((contours[0], pitch, 0.99), (contours[1], energy, 0.99), (found, samples, 0.97)):
        assert torch.corrcoef(torch.stack([ours, theirs]))[0, 1] > least
    assert found.std() == pytest.approx(float(samples.std()), rel=0.05)
