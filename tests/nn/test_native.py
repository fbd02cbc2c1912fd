"""Kernels in C: equal to those of PyTorch, row by row, however they were compiled."""

import copy
import stat

import pytest
import torch
import torch.nn.functional as F

from speechgpt2.lm.backbone import DecoderStack
from speechgpt2.lm.config import BackboneConfig
from speechgpt2.lm.native_stack import FEW_POSITIONS, NativeStack
from speechgpt2.nn import native
from speechgpt2.nn.linear import Linear, pack
from speechgpt2.nn.quantized import Quantization, QuantizedKernel, quantize, quantize_model, quantize_module
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
    return native.NativeMatrix(library, matrix.values, matrix.rows, matrix.scales).multiply(x)


@pytest.fixture(scope="module", params=["this processor", "AVX2 only"])
def library(request, tmp_path_factory):
    if request.param == "this processor":
        return native.native_kernels()
    flags = [flag for flag in native.FLAGS if flag != "-march=native"] + ["-mavx2", "-mf16c", "-mfma"]
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
    y = QuantizedKernel.from_matrix(quantize(torch.randn(64, 256).bfloat16(), quantization))(x)
    with pytest.raises(RuntimeError, match=r"derivative|does not require grad"):
        y.sum().backward()


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [(1, 1), (5, 33), (200, 4096), (321, 899)], ids=str)
def test_products_with_half_precision_are_those_of_float32(library, dtype, size):
    torch.manual_seed(0)
    weight, bias, x = torch.randn(size).to(dtype), torch.randn(size[0]).to(dtype), torch.randn(23, size[1])
    matrix = native.NativeMatrix(library, weight, len(weight), bias=bias, unit=0.25)
    y = matrix.multiply(x)
    wanted = F.linear(x.double(), weight.double() * 0.25, bias.double())
    torch.testing.assert_close(y.double(), wanted, rtol=1e-5, atol=1e-5 * size[1] ** 0.5)
    for count in (1, 2, 3, 4, 7):
        assert torch.equal(matrix.multiply(x[5 : 5 + count]), y[5 : 5 + count])


def has_panels(dtype):
    kernels = native.native_kernels()
    return kernels is not None and kernels.in_panels(torch.ones(32, 2).to(dtype)) is not None


@needs_compiler
@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(dtype, marks=needs.condition(has_panels(dtype), f"the processor has no products in {dtype}"))
        for dtype in (torch.float32, torch.bfloat16)
    ],
    ids=str,
)
@pytest.mark.parametrize("gelu", [False, True], ids=["plain", "GELU"])
def test_products_with_panels_are_those_of_torch(dtype, gelu):
    torch.manual_seed(0)
    kernels, weight, bias = native.native_kernels(), torch.randn(96, 130).to(dtype), 10 * torch.randn(96)
    matrix = native.NativeMatrix(kernels, kernels.in_panels(weight), 96, bias=bias)
    x = torch.randn(29, 130).to(dtype)
    y, wanted = matrix.multiply(x, gelu), F.linear(x.double(), weight.double(), bias.double())
    rounding = 1e-5 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(y.double(), F.gelu(wanted) if gelu else wanted, rtol=rounding, atol=2e-5)
    for count in (1, 4, 5, 9, 12, 13):
        assert torch.equal(matrix.multiply(x[5 : 5 + count], gelu), y[5 : 5 + count])


@needs_compiler
def test_panels_are_for_sizes_that_they_divide():
    kernels = native.native_kernels()
    assert kernels.in_panels(torch.randn(33, 64)) is None
    assert kernels.in_panels(torch.randn(32, 63).bfloat16()) is None
    assert kernels.in_panels(torch.randn(32, 64).half()) is None


@needs_compiler
def test_layers_use_it_for_few_rows(monkeypatch):
    layer = Linear(128, 64).bfloat16()
    quantize_module(layer, "weight", Quantization("int4"), torch.device("cpu"))
    layer.arrange()
    pack(layer)
    assert layer.packed.reads_float32
    calls, multiply = [], native.NativeMatrix.multiply
    monkeypatch.setattr(native.NativeMatrix, "multiply", lambda self, x: calls.append(len(x)) or multiply(self, x))
    with torch.no_grad():
        layer(torch.randn(3, 128)), layer(torch.randn(300, 128))
    assert calls == [3]


@pytest.fixture
def cold(monkeypatch, tmp_path):
    """An empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.native_kernels.cache_clear()
    yield tmp_path
    native.native_kernels.cache_clear()


def native_stack(library, quantization=None, **options):
    """A stack of two layers that runs in C, and one with the same weights that does not."""
    torch.manual_seed(0)
    config = BackboneConfig(
        **{"vocab": 10, "width": 128, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 192, **options}
    )
    stack = DecoderStack(config).eval().bfloat16().requires_grad_(False)
    for norm in (module for module in stack.modules() if isinstance(module, torch.nn.RMSNorm)):
        torch.nn.init.normal_(norm.weight, 1, 0.1)
    if quantization is not None:
        quantize_model(stack, quantization)
    pack(stack)
    stack.norm.float()
    for layer in stack.layers:
        for norm in (layer.attention_norm, layer.ffn_norm, layer.attention.q_norm, layer.attention.k_norm):
            norm.float() if norm is not None else None
    plain = copy.copy(stack)
    plain.native, stack.native = None, NativeStack(stack, library)
    return stack, plain


@needs_compiler
@pytest.mark.parametrize(
    "options",
    [{}, {"qk_norm": True}, {"attention_bias": False}, {"head_size": 40}],
    ids=["plain", "normed", "no bias", "other head"],
)
@pytest.mark.parametrize("history", [0, 5, 700])
def test_a_decoder_equals_that_of_torch(library, history, options):
    stacks = native_stack(library, **options)
    x, active = torch.randn(3, 1, 128), torch.tensor([1, 0, 1])
    outputs, states = [], []
    with torch.inference_mode():
        for stack in stacks:
            state = stack.init_state(3, 710)
            past = torch.randn(3, history, 128, generator=torch.Generator().manual_seed(1))
            if history:
                _, state = stack(past, state, torch.tensor([history, history // 2, 1]))
            y, state = stack(x, state, active)
            y, state = stack(x.expand(-1, 4, -1), state, 4 * active)
            outputs.append(y[active.bool()])
            states.append(state)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=2e-5)
    assert torch.equal(states[0].position, states[1].position)
    for one, other in zip(states[0].layers, states[1].layers, strict=True):
        for mine, theirs in zip(one, other, strict=True):  # cells past a row's position are not read
            torch.testing.assert_close(mine[::2, :, :-1], theirs[::2, :, :-1], rtol=1e-4, atol=2e-5)


@needs_compiler
@pytest.mark.parametrize("quantization", [None, *KINDS[:2]], ids=str)
def test_a_decoder_does_not_depend_on_chunks_or_other_rows(library, quantization):
    """Bit for bit, for every row and every cut."""
    stack, _ = native_stack(library, quantization)
    x = torch.randn(2, 8, 128)
    with torch.inference_mode():
        whole, after = stack(x, stack.init_state(2, 20))
        for row, sizes in ((0, [8]), (1, [1] * 8), (1, [3, 1, 4])):
            state, parts, at = stack.init_state(1, 20), [], 0
            for size in sizes:
                y, state = stack(x[row : row + 1, at : at + size], state)
                parts.append(y)
                at += size
            assert torch.equal(torch.cat(parts, dim=1)[0], whole[row])
            assert all(torch.equal(a.keys[0], b.keys[row]) for a, b in zip(state.layers, after.layers, strict=True))


@needs_compiler
def test_a_decoder_keeps_idle_rows_and_invalid_numbers(library):
    stack, _ = native_stack(library)
    with torch.inference_mode():
        state = stack.init_state(2, 20)
        y, state = stack(torch.full((2, 3, 128), torch.nan), state, torch.tensor([0, 2]))
        assert state.position.tolist() == [0, 2] and not y[0].any() and y[1, :2].isnan().all()
        y, _ = stack(torch.ones(2, 1, 128), state, torch.tensor([1, 0]))
        assert y[0].isfinite().all()
        for x, lengths in ((torch.ones(2, 1, 128), torch.tensor([0, 0])), (torch.ones(2, 0, 128), None)):
            y, after = stack(x, state, lengths)
            assert y.shape == x.shape and torch.equal(after.position, state.position)


@needs_compiler
def test_many_positions_are_left_to_torch(library, monkeypatch):
    stack, _ = native_stack(library)
    monkeypatch.setattr(NativeStack, "__call__", lambda *_: pytest.fail("computed in C"))
    with torch.inference_mode():
        stack(torch.randn(1, FEW_POSITIONS + 1, 128), stack.init_state(1, 20))
        stack(torch.randn(1, 2, 128))


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
    flags = [*native.FLAGS, "-Wall", "-Wextra", "-Werror"]
    native.build(tmp_path / "x.so", flags=flags)
