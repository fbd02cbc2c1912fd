"""Every kernel gives the same product, for any number of rows and precision."""

import pytest
import torch
import torch.nn.functional as F

from speechgpt2.nn import linear as module
from speechgpt2.nn.linear import MANY_ROWS, Linear, linear, pack, packed
from tests import needs

TOLERANCE = {torch.float32: {"atol": 1e-5, "rtol": 1e-5}, torch.bfloat16: {"atol": 0.05, "rtol": 0.02}}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(0,), (1,), (1, 1), (3,), (2, 4), (5, 2, 3), (MANY_ROWS + 1,)], ids=str)
@pytest.mark.parametrize("slow,flipped,half", [(True, 2, 0), (False, 8, 1), (False, 2, 0)])
def test_product_equals_torch(monkeypatch, dtype, shape, slow, flipped, half):
    monkeypatch.setattr(module, "HALF_IS_SLOW", slow)
    monkeypatch.setattr(module, "FLIPPED", range(flipped, MANY_ROWS + 1))
    monkeypatch.setattr(module, "FLIPPED_HALF", range(half, MANY_ROWS * half + 1))
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(*s).to(dtype) for s in ((*shape, 16), (6, 16), (6,)))
    for b in (None, bias):
        y = linear(x, weight, b)
        assert y.dtype == dtype and y.shape == (*shape, 6)
        wanted = F.linear(x.float(), weight.float(), None if b is None else b.float())
        torch.testing.assert_close(y.float(), wanted, **TOLERANCE[dtype])


@pytest.mark.parametrize("rows", [1, 3, 20, 100])
def test_gradients_equal_torch(rows):
    torch.manual_seed(0)
    ours, theirs = Linear(8, 4), torch.nn.Linear(8, 4)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(rows, 8)
    for layer in (ours, theirs):
        layer(x).square().sum().backward()
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
    torch.testing.assert_close(ours.bias.grad, theirs.bias.grad)


HAS_KERNELS = "fbgemm" in torch.backends.quantized.supported_engines
needs_kernels = needs.condition(HAS_KERNELS, "the processor has no FBGEMM kernels")


@pytest.fixture(params=["C", "FBGEMM"])
def half_kernel(request, monkeypatch):
    """The class of the kernels of half precision, with and without the kernels in C."""
    if request.param == "FBGEMM":
        monkeypatch.setattr(module, "native_kernels", lambda: None)
    return module.FbgemmKernel if module.native_kernels() is None else module.HalfKernel


@needs_kernels
@pytest.mark.parametrize("shape", [(0,), (1,), (1, 1), (3,), (2, 4), (5, 2, 3), (MANY_ROWS + 1,)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_packed_product_equals_torch(half_kernel, shape, bias):
    torch.manual_seed(0)
    layer, x = Linear(48, 35, bias), torch.randn(*shape, 48)
    layer.half().float()
    with torch.inference_mode():
        wanted = F.linear(x, layer.weight, layer.bias)
        pack(layer)
        assert isinstance(layer.packed, half_kernel)
        y = layer(x)
    assert y.shape == (*shape, 35)
    torch.testing.assert_close(y, wanted, atol=1e-5, rtol=1e-5)


@needs_kernels
def test_packed_row_is_bit_equal_in_any_place(half_kernel):
    torch.manual_seed(0)
    layer, x = Linear(384, 100), torch.randn(4, 384)
    pack(layer.half().float())
    with torch.inference_mode():
        assert torch.equal(layer(x)[[2, 0, 3, 1]], layer(x[[2, 0, 3, 1]]))


def test_only_exact_float16_or_large_weights_are_packed():
    layer = Linear(48, 35)
    assert not torch.equal(layer.weight.half().float(), layer.weight) and packed(layer.weight) is None


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [0, 1, 3, MANY_ROWS + 1])
def test_weights_that_bfloat16_holds_are_packed(half_kernel, dtype, rows):
    """Small ones are below what float16 holds by itself, so it holds multiples of a unit."""
    torch.manual_seed(0)
    layer = Linear(48, 35).bfloat16()
    with torch.no_grad():
        layer.weight[0] = torch.linspace(-3e-6, 5e-6, 48).bfloat16()
    assert not torch.equal(layer.weight.half().bfloat16(), layer.weight)
    layer, x = layer.to(dtype), torch.randn(rows, 48).to(dtype)
    with torch.inference_mode():
        wanted = F.linear(x.double(), layer.weight.double(), layer.bias.double())
        pack(layer)
        assert isinstance(layer.packed, half_kernel)
        y = layer(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), wanted, **TOLERANCE[dtype])


@needs_kernels
def test_matrix_packed_in_parts_equals_the_whole(monkeypatch):
    monkeypatch.setattr(module, "native_kernels", lambda: None)
    torch.manual_seed(0)
    layer, x = Linear(48, 35).bfloat16(), torch.randn(2, 48)
    with torch.no_grad():
        layer.weight[0] = torch.linspace(-3e-6, 5e-6, 48)
    whole = packed(layer.weight, layer.bias)
    monkeypatch.setattr(module, "PACKED_AT_ONCE", 16 * 48)
    parts = packed(layer.weight, layer.bias)
    assert len(whole.parts) == 1 and len(parts.parts) == 3
    with torch.inference_mode():
        torch.testing.assert_close(parts(x), whole(x), atol=1e-6, rtol=1e-5)


def test_bfloat16_kernels_serve_more_rows(monkeypatch, half_kernel):
    monkeypatch.setattr(module, "HALF_IS_SLOW", False)
    weight = torch.randn(35, 48).bfloat16()
    assert isinstance(packed(weight, rows=3), half_kernel) and not isinstance(packed(weight, rows=4), half_kernel)


@needs.condition(hasattr(torch.ops.mkldnn, "_reorder_linear_weight"), "this torch has no oneDNN kernels")
@pytest.mark.parametrize("dtype", [torch.float32, *([] if module.HALF_IS_SLOW else [torch.bfloat16])], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [8, 100])
def test_large_packed_matrix_is_not_kept_twice(dtype, bias, rows):
    torch.manual_seed(0)
    layer = Linear(1024, 1024 + 32, bias).to(dtype)
    shapes = [(0,), (1,), (3,), (2, 4), (5, 2, 3), (MANY_ROWS + 1,)]
    inputs = [torch.randn(*shape, 1024).to(dtype) for shape in shapes]
    with torch.inference_mode():
        wanted = [F.linear(x, layer.weight, layer.bias) for x in inputs]
        pack(layer, rows)
        pack(layer, rows)  # again is nothing new
        assert layer.weight.is_meta and layer.weight.shape == (1056, 1024)
        for x, y in zip(inputs, wanted, strict=True):
            torch.testing.assert_close(layer(x), y, **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [10, 100])
def test_gelu_of_a_product_equals_that_of_torch(dtype, rows):
    layer, x = Linear(512, 640).to(dtype), 3 * torch.randn(2, 5, 512).to(dtype)
    with torch.no_grad():
        wanted = F.gelu(layer(x))
        pack(layer, rows, half=False)
        exact = dtype == torch.float32  # in bfloat16 the product is not rounded before
        torch.testing.assert_close(layer.gelu(x), wanted, rtol=1e-5 if exact else 0.03, atol=1e-5 if exact else 1e-3)
        assert layer.gelu(x[:, :0]).shape == (2, 0, 640)


@needs_kernels
def test_gradients_use_the_unpacked_weights():
    layer = Linear(8, 4).half().float()
    pack(layer)
    with torch.no_grad():
        layer.weight.zero_()
    layer(torch.ones(2, 8)).sum().backward()
    assert layer.weight.grad is not None and layer(torch.ones(2, 8)).sum() == 2 * layer.bias.sum()
