"""Weight-only int8 and int4: rounding, layout, products."""

import pytest
import torch
import torch.nn.functional as F

from speechgpt2.errors import UserError
from speechgpt2.nn.linear import Linear
from speechgpt2.nn.quantized import (
    GROUPS,
    MANY_ROWS,
    Embedding,
    FrozenLinear,
    Quantization,
    QuantizedKernel,
    from_blocks,
    quantize,
    quantize_module,
    to_blocks,
)

ALL = [Quantization("int8"), *(Quantization("int4", group) for group in GROUPS)]
CPU = torch.device("cpu")


def matrix(rows=200, columns=256, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).bfloat16() * 0.02


@pytest.mark.parametrize("quantization", ALL, ids=str)
def test_errors_are_at_most_a_step(quantization):
    weight = matrix()
    weight[3] = 0.0
    weight[5, 7] = 1.0  # an outlier widens the steps of its own group only
    error = (quantize(weight, quantization).dequantize().float() - weight.float()).abs()
    if quantization.kind == "int8":
        step = weight.float().abs().amax(1, keepdim=True) / 127
    else:
        grouped = weight.float().view(len(weight), -1, quantization.group)
        step = (grouped.amax(-1) - grouped.amin(-1)).repeat_interleave(quantization.group, 1) / 15
    share = 0.5 if quantization.kind == "int8" else 1.0  # int4 cuts off the ends of a group's range
    allowed = share * step + 0.02 * weight.float().abs() + 1e-4  # scales are in bfloat16
    assert (error <= allowed + step / 8).all()


@pytest.mark.parametrize("quantization", ALL, ids=str)
def test_bytes_are_as_planned(quantization):
    stored = quantize(matrix(), quantization)
    assert quantization.bytes_of(200, 256) == stored.values.nbytes + stored.scales.nbytes


@pytest.mark.parametrize("quantization", ALL, ids=str)
def test_parts_are_quantized_as_the_whole(quantization, monkeypatch):
    whole = quantize(matrix(), quantization)
    monkeypatch.setattr("speechgpt2.nn.quantized.QUANTIZED_AT_ONCE", 64 * 256)
    parts = quantize(matrix(), quantization)
    assert torch.equal(whole.values, parts.values) and torch.equal(whole.scales, parts.scales)
    assert torch.equal(whole.dequantize(64, 192), whole.dequantize()[64:192])


@pytest.mark.parametrize("native", [True, False], ids=["native", "torch"])
@pytest.mark.parametrize("rows", [0, 1, 5, max(MANY_ROWS.values())])
@pytest.mark.parametrize("quantization", ALL, ids=str)
def test_product_equals_that_with_the_dequantized_matrix(quantization, rows, native, monkeypatch):
    if not native:
        monkeypatch.setattr("speechgpt2.nn.quantized.native_kernels", lambda: None)
    layer = Linear(256, 200)
    with torch.no_grad():
        layer.weight.copy_(matrix())
        layer.bias.normal_()
    layer.bfloat16()
    weight = quantize(layer.weight, quantization).dequantize()
    quantize_module(layer, "weight", quantization, CPU)
    layer.arrange()
    x = torch.randn(rows, 256).bfloat16()
    y = layer(x)
    assert y.shape == (rows, 200) and not layer.weight.numel()
    torch.testing.assert_close(y, F.linear(x, weight, layer.bias), atol=0.02, rtol=0.02)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("kind", ("int8", "int4"))
def test_gradients_pass_through_a_frozen_matrix(kind, dtype, monkeypatch):
    monkeypatch.setattr("speechgpt2.nn.quantized.DEQUANTIZED_AT_ONCE", 64 * 64)  # in three parts
    generator = torch.Generator().manual_seed(0)
    layer = Linear(64, 150)
    matrix = quantize(layer.weight, Quantization(kind))
    frozen, plain = FrozenLinear(matrix, layer.bias), matrix.dequantize().float()
    x = torch.randn(2, 5, 64, generator=generator, requires_grad=True)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        y = frozen(x)
    assert y.dtype == dtype and len(list(matrix.parts())) == 3
    wanted = F.linear(x, plain, layer.bias)
    upstream = torch.randn(2, 5, 150, generator=generator)
    ours, theirs = (torch.autograd.grad(out, x, upstream.to(out.dtype))[0] for out in (y, wanted))
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(y.float(), wanted, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)
    assert ours.dtype == torch.float32 and not frozen.state_dict().keys() - {"bias"}


def test_layout_is_that_of_the_kernel():
    """Blocks of 64 rows; byte j of an input holds rows j and j + 32. A kernel for other blocks gets its own layout."""
    integers = torch.randint(16, (128, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    blocks = to_blocks(integers)
    assert torch.equal(from_blocks(blocks), integers)
    assert int(blocks[0, 5]) == int(integers[5, 0]) + 16 * int(integers[37, 0])
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        assert torch.equal(torch.ops.aten._convert_weight_to_int4pack_for_cpu(integers.int(), 1), blocks)


@pytest.mark.parametrize("blocks", [True, False])
def test_product_without_blocks_of_64(monkeypatch, blocks):
    """The kernel is given the layout that it converts to itself, which here is the same."""
    monkeypatch.setattr("speechgpt2.nn.quantized.HAS_BLOCKS_OF_64", blocks)
    monkeypatch.setattr("speechgpt2.nn.quantized.native_kernels", lambda: None)
    stored = quantize(matrix(128), Quantization("int4"))
    kernel, x = QuantizedKernel.from_matrix(stored), torch.randn(2, 256).bfloat16()
    assert kernel.arranged is not blocks
    torch.testing.assert_close(kernel(x), F.linear(x, stored.dequantize()), atol=0.02, rtol=0.02)


def test_groups_must_divide():
    with pytest.raises(UserError, match="groups of 128 does not fit a matrix with 64 inputs"):
        quantize(matrix(64, 64), Quantization("int4", 128))
    with pytest.raises(UserError, match="in groups of 32 or 128"):
        Quantization("int4", 16)


def test_embedding_in_int8():
    table = Embedding(50, 32).bfloat16()
    wanted, ids = table(torch.arange(50)), torch.tensor([[3, 49], [0, 3]])
    quantize_module(table, "weight", Quantization("int4"), CPU)
    assert table.matrix is not None and table.matrix.kind == "int8" and table(ids).shape == (2, 2, 32)
    torch.testing.assert_close(table(ids), wanted[ids], atol=0.03, rtol=0.02)
