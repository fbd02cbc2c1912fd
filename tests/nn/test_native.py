"""Kernels in C: equal to those of PyTorch, row by row, however they were compiled."""

import stat
import subprocess

import pytest
import torch
import torch.nn.functional as F

from speechgpt2.lm.backbone import DecoderStack
from speechgpt2.lm.config import BackboneConfig
from speechgpt2.nn import native
from speechgpt2.nn.linear import Linear, pack
from speechgpt2.nn.quantized import Quantization, QuantizedKernel, quantize, quantize_module
from speechgpt2.nn.transformer import Transformer, TransformerConfig
from speechgpt2.streaming import Cache
from tests import needs

needs_compiler = needs.condition(native.native_kernels() is not None, "no C compiler, or a processor without AVX2")
KINDS = [Quantization("int8"), Quantization("int4", 32), Quantization("int4", 128)]
ODD_SIZES = [(5, 128), (64, 256), (200, 4096 + 128), (321, 896)]


def exact(matrix):
    """The dequantized matrix in float64; dequantized in bfloat16 it would be rounded."""
    return matrix._replace(scales=matrix.scales.double()).dequantize()


def products(library, x, matrix):
    kernel = QuantizedKernel(matrix, None, False, library)
    return kernel(x)


@pytest.fixture(scope="module", params=["this processor", "AVX2 only"])
def library(request, tmp_path_factory):
    if request.param == "this processor":
        return native.native_kernels()
    flags = [flag for flag in native.FLAGS if flag != "-march=native"] + ["-mavx2", "-mfma"]
    native.build(path := tmp_path_factory.mktemp("native") / "avx2.so", flags=flags)
    return native.NativeKernels(path)


@needs_compiler
@pytest.mark.parametrize("size", ODD_SIZES, ids=str)
@pytest.mark.parametrize("quantization", KINDS, ids=str)
def test_inputs_are_rounded_less_than_by_bfloat16(library, quantization, size):
    torch.manual_seed(0)
    matrix = quantize(torch.randn(size).bfloat16(), quantization)
    magnitude = torch.logspace(-6, 6, 20)[:, None]
    x = torch.randn(20, size[1]) * magnitude
    x[1] = 0
    x[2, 7] = 20 * magnitude[2, 0]  # an outlier, as language models have
    y, wanted = products(library, x, matrix), F.linear(x.double(), exact(matrix))
    rounded = F.linear(x.bfloat16().double(), exact(matrix))
    error, allowed = (y - wanted).norm(dim=1), (rounded - wanted).norm(dim=1)
    assert (error <= 0.5 * allowed).all()
    for row in range(len(x)):
        assert torch.equal(products(library, x[row : row + 1], matrix)[0], y[row])


@needs_compiler
@pytest.mark.parametrize("quantization", KINDS, ids=str)
def test_result_does_not_depend_on_threads(quantization):
    matrix, x = quantize(torch.randn(300, 256).bfloat16(), quantization), torch.randn(3, 256)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(products(native.native_kernels(), x, matrix))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@needs_compiler
@pytest.mark.parametrize("quantization", KINDS, ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_invalid_inputs_are_not_hidden(quantization, bad):
    matrix, x = quantize(torch.randn(64, 256).bfloat16(), quantization), torch.randn(2, 256)
    x[1, 100] = bad
    y = products(native.native_kernels(), x, matrix)
    assert y[0].isfinite().all() and y[1].isnan().all()


@needs_compiler
@pytest.mark.parametrize("quantization", KINDS, ids=str)
def test_largest_integers_do_not_overflow(quantization):
    """All weights and inputs at the end of their range, in rows as long as those of a 7B model."""
    weight = torch.full((2, 18944), 1.0).bfloat16()
    weight[:, ::128] = 0.5  # int4 needs a range
    x = torch.full((1, 18944), 7.0)
    matrix = quantize(weight, quantization)
    torch.testing.assert_close(
        products(native.native_kernels(), x, matrix).double(), F.linear(x.double(), exact(matrix)), rtol=1e-4, atol=0
    )


@needs_compiler
@pytest.mark.parametrize("group", [32, 128])
def test_int4_is_dequantized_as_by_torch(monkeypatch, group):
    matrix = quantize(torch.randn(200, 256).bfloat16(), Quantization("int4", group))
    whole, part = matrix.dequantize(), matrix.dequantize(64, 192)
    monkeypatch.setattr("speechgpt2.nn.quantized.native_kernels", lambda: None)
    torch.testing.assert_close(whole, matrix.dequantize(), rtol=2**-8, atol=0)  # where both are as near
    assert torch.equal(part, whole[64:192])


@needs_compiler
@pytest.mark.parametrize("quantization", KINDS, ids=str)
def test_missing_gradients_are_an_error(quantization):
    x = torch.randn(2, 256, requires_grad=True)
    y = products(native.native_kernels(), x, quantize(torch.randn(64, 256).bfloat16(), quantization))
    with pytest.raises(RuntimeError, match=r"derivative|does not require grad"):
        y.sum().backward()


@needs_compiler
def test_layers_use_it_for_few_rows(monkeypatch):
    layer = Linear(128, 64).bfloat16()
    quantize_module(layer, "weight", Quantization("int4"), torch.device("cpu"))
    layer.arrange()
    pack(layer)
    assert layer.packed.reads_float32
    calls = []
    monkeypatch.setattr(
        native.NativeKernels, "int4", lambda self, x, *rest: calls.append(len(x)) or torch.zeros(len(x), 64)
    )
    layer(torch.randn(3, 128)), layer(torch.randn(300, 128))
    assert calls == [3]


@pytest.fixture
def cold(monkeypatch, tmp_path):
    """An empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.native_kernels.cache_clear()
    yield tmp_path
    native.native_kernels.cache_clear()


@needs_compiler
def test_norm_equals_that_of_torch(library):
    x = torch.randn(3, 5, 896) * torch.logspace(-4, 4, 15).view(3, 5, 1)
    x[1, 1] = 0
    gain = torch.randn(896)
    torch.testing.assert_close(library.rms_norm(x, gain, 1e-6), F.rms_norm(x, (896,), gain, 1e-6))


@needs_compiler
def test_gate_equals_that_of_torch(library):
    x = torch.cat([torch.randn(7, 128) * 20, torch.tensor([[-100.0, 0.0, 1e30, 88.0] * 32])])
    gate, up = x.chunk(2, dim=-1)
    torch.testing.assert_close(library.gated_silu(x), F.silu(gate) * up, rtol=1e-5, atol=1e-30)
    assert library.gated_silu(torch.full((1, 16), torch.nan)).isnan().all()


@needs_compiler
@pytest.mark.parametrize("qk_norm", [False, True], ids=["plain", "normed"])
@pytest.mark.parametrize("history", [0, 5, 700])
def test_attention_of_a_step_equals_that_of_torch(library, monkeypatch, history, qk_norm):
    config = BackboneConfig(vocab=10, width=96, layers=2, heads=6, kv_heads=2, ffn=64, qk_norm=qk_norm)
    torch.manual_seed(0)
    stack, x = DecoderStack(config).eval(), torch.randn(3, 1, 96)
    active = torch.tensor([1, 0, 1])
    outputs, states = [], []
    with torch.no_grad():
        for kernels in (library, None):
            monkeypatch.setattr("speechgpt2.lm.backbone.kernels_for", lambda *_, kernels=kernels: kernels)
            state = stack.init_state(3, 710)
            past = torch.randn(3, history, 96, generator=torch.Generator().manual_seed(1))
            if history:
                _, state = stack(past, state, torch.tensor([history, history // 2, 1]))
            y, state = stack(x, state, active)
            y, state = stack(x, state, active)
            outputs.append(y[active.bool()])
            states.append(state)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)
    for one, other in zip(states[0].layers, states[1].layers, strict=True):
        torch.testing.assert_close(one.keys[:, :, :-1], other.keys[:, :, :-1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.values[:, :, :-1], other.values[:, :, :-1], rtol=1e-4, atol=1e-5)


TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@needs_compiler
@TYPES
@pytest.mark.parametrize("past,steps", [(4, 1), (0, 3), (10, 12), (50, 400)])
def test_inputs_of_a_convolution_equal_those_of_torch(library, dtype, past, steps):
    tail, x = torch.randn(2, past, 96).to(dtype), torch.randn(2, steps, 96).to(dtype)
    assert torch.equal(library.extend(x, tail, 0.1), torch.cat([tail, F.leaky_relu(x, 0.1)], dim=1))
    assert torch.equal(library.extend(x, tail, 1.0), torch.cat([tail, x], dim=1))


@needs_compiler
@TYPES
@pytest.mark.parametrize("past,steps", [(6, 1), (6, 12), (2, 300)])
def test_depthwise_convolution_and_norm_equal_those_of_torch(library, dtype, past, steps):
    tail, x = torch.randn(2, past, 96).to(dtype), torch.randn(2, steps, 96).to(dtype) + 3
    taps, rest = torch.randn(past + 1, 96), torch.randn(3, 96)
    bias, gain, shift = rest
    y = library.depthwise_norm(x, tail, taps, rest, 1e-6)
    inputs = torch.cat([tail, x], dim=1).float().mT
    wanted = F.layer_norm(F.conv1d(inputs, taps.t()[:, None], bias, groups=96).mT, (96,), gain, shift, 1e-6)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), wanted, rtol=2**-8 if dtype == torch.bfloat16 else 1e-4, atol=2e-5)


@needs_compiler
@TYPES
@pytest.mark.parametrize("steps,context,width", [(1, 30, 32), (3, 125, 128), (12, 50, 64), (9, 3, 8)])
def test_attention_to_a_ring_equals_that_of_torch(library, monkeypatch, dtype, steps, context, width):
    """Over several rounds, in two rows at different positions."""
    torch.manual_seed(0)
    module = Transformer(TransformerConfig(2 * width, 2, 2, 16, context)).to(dtype)
    chunks, outputs = torch.randn(12, 2, steps, 2 * width).to(dtype), []
    with torch.no_grad():
        for kernels in (library, None):
            monkeypatch.setattr("speechgpt2.nn.transformer.kernels_for", lambda *_, kernels=kernels, half: kernels)
            state = module.init_ring(2, steps)
            state.position[0] = 2 * context  # the cells before are zero
            for chunk in chunks:
                y, state = module(chunk, state)
            outputs.append(y)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-5 if dtype == torch.float32 else 0.03)


@needs_compiler
@TYPES
def test_attention_to_a_ring_does_not_depend_on_other_rows(library, dtype):
    heads, position = torch.randn(3, 5, 3, 2, 16).to(dtype), torch.tensor([0, 7, 1000])
    cos, sin = torch.rand(3, 5, 8), torch.rand(3, 5, 8)
    cache = Cache(*torch.randn(2, 3, 2, 32, 16).to(dtype))
    alone = [Cache(*(cells[row : row + 1].clone() for cells in cache)) for row in range(3)]
    y = library.attend_ring(heads, cos, sin, cache, position, 20)
    for row, ring in enumerate(alone):
        one = slice(row, row + 1)
        assert torch.equal(library.attend_ring(heads[one], cos[one], sin[one], ring, position[one], 20), y[one])
        assert torch.equal(ring.keys, cache.keys[one]) and torch.equal(ring.values, cache.values[one])


@needs_compiler
def test_it_is_compiled_once(cold, monkeypatch):
    assert native.native_kernels() is not None
    (built,) = (cold / "speechgpt2" / "native").iterdir()
    native.native_kernels.cache_clear()
    monkeypatch.setattr(native, "build", lambda *_: pytest.fail("compiled again"))
    assert native.native_kernels() is not None and built.suffix == ".so"


def test_it_can_be_turned_off(cold, monkeypatch):
    monkeypatch.setenv("SG2_NATIVE", "0")
    assert native.native_kernels() is None and not list(cold.iterdir())
    kernel = QuantizedKernel.from_matrix(quantize(torch.randn(64, 128).bfloat16(), Quantization("int4")))
    assert kernel.native is None and not kernel.reads_float32


@needs_compiler
def test_a_missing_compiler_is_logged(cold, monkeypatch, caplog):
    monkeypatch.setenv("CC", "no-such-compiler")
    with caplog.at_level("INFO"):
        assert native.native_kernels() is None
    assert "no C compiler" in caplog.text


@needs_compiler
def test_a_failing_compiler_is_logged(cold, monkeypatch, caplog):
    compiler = cold / "cc"
    compiler.write_text("#!/bin/sh\necho 'no such option' >&2\nexit 1\n")
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CC", str(compiler))
    assert native.native_kernels() is None
    assert "no such option" in caplog.text and not list((cold / "speechgpt2" / "native").iterdir())


@needs_compiler
def test_a_damaged_library_is_logged(cold, caplog, monkeypatch):
    monkeypatch.setattr(native, "build", lambda path, _: (path.parent.mkdir(parents=True), path.write_text("damaged")))
    assert native.native_kernels() is None and "slower kernels" in caplog.text


@needs_compiler
def test_the_source_has_no_warnings(tmp_path):
    command = ["cc", *native.FLAGS, "-Wall", "-Wextra", "-Werror", str(native.SOURCE), "-o", str(tmp_path / "x.so")]
    subprocess.run([*command, "-lm"], check=True)
