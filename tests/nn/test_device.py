"""Layers on a device against the same layers on the CPU."""

import pytest
import torch
import torch.nn.functional as F

from speechgpt2.nn.linear import Linear
from speechgpt2.nn.precision import rotary_angle, rotary_frequencies
from speechgpt2.nn.quantized import GROUPS, MANY_ROWS, Embedding, FrozenLinear, Quantization, quantize, quantize_module

ALL = [Quantization("int8"), *(Quantization("int4", group) for group in GROUPS)]
ROWS = [1, 2, 3, 17, MANY_ROWS["int8"], MANY_ROWS["int4"] + 5, 200]


def matrix(rows=200, columns=256, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).bfloat16() * 0.02


def quantized_layer(weight, quantization, device):
    """A layer with a bias whose matrix is quantized on the CPU, and arranged on the device; the dequantized matrix."""
    layer = Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(torch.linspace(-1, 1, len(weight)))
    layer.bfloat16()
    exact = quantize(layer.weight, quantization).dequantize()
    quantize_module(layer, "weight", quantization, device)
    layer.to(device)
    layer.arrange()
    return layer, exact


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("quantization", ALL, ids=str)
def test_quantized_product_equals_that_with_the_dequantized_matrix(device, quantization, rows):
    layer, exact = quantized_layer(matrix(), quantization, device)
    x = torch.randn(rows, 256, generator=torch.Generator().manual_seed(rows)).bfloat16()
    wanted = F.linear(x.float(), exact.float(), layer.bias.cpu().float())
    with torch.inference_mode():
        y = layer(x.to(device))
    assert y.shape == (rows, 200) and y.dtype == torch.bfloat16 and y.device.type == device.type
    torch.testing.assert_close(y.cpu().float(), wanted, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("rows", [1, 7, 150])
@pytest.mark.parametrize(("outputs", "columns"), [(64, 128), (130, 384), (1000, 160), (48, 96)])
def test_int4_of_other_sizes(device, outputs, columns, rows):
    """Kernels need sizes that divide; others are dequantized, and rows of padding are cut off."""
    layer, exact = quantized_layer(matrix(outputs, columns), Quantization("int4", 32), device)
    x = torch.randn(2, rows, columns, generator=torch.Generator().manual_seed(1)).bfloat16()
    with torch.inference_mode():
        y = layer(x.to(device))
    assert y.shape == (2, rows, outputs)
    torch.testing.assert_close(
        y.cpu().float(), F.linear(x.float(), exact.float(), layer.bias.cpu().float()), atol=0.02, rtol=0.02
    )


@pytest.mark.parametrize("quantization", ALL, ids=str)
def test_matrix_is_quantized_alike(device, quantization):
    """Sums on a device have another order, so an integer on the border of two may differ."""
    here, there = quantize(matrix(), quantization), quantize(matrix().to(device), quantization)
    assert (here.values == there.values.cpu()).float().mean() > 0.98
    torch.testing.assert_close(
        there.dequantize().cpu().float(), here.dequantize().float(), atol=0.02 * 4 / 15, rtol=0.0
    )


@pytest.mark.parametrize("quantization", ALL, ids=str)
def test_matrix_is_dequantized_alike(device, quantization):
    here = quantize(matrix(), quantization)
    there = here.to(device)
    torch.testing.assert_close(there.dequantize().cpu(), here.dequantize(), atol=1e-4, rtol=0.01)
    for (start, part), (start_, part_) in zip(there.parts(), here.parts(), strict=True):
        assert start == start_ and part.shape == part_.shape


def test_quantized_embedding(device):
    table = Embedding(50, 64, device="cpu").bfloat16()
    quantize_module(table, "weight", Quantization("int4"), torch.device("cpu"))
    ids = torch.tensor([[3, 49], [0, 3]])
    wanted = table(ids)
    table.set_quantized("weight", table.matrix.to(device))
    assert torch.equal(table(ids.to(device)).cpu(), wanted)


@pytest.mark.parametrize("quantization", ALL, ids=str)
def test_gradients_pass_through_a_frozen_matrix(device, quantization):
    """As in training with adapters beside a quantized model."""
    stored, x = quantize(matrix(), quantization), torch.randn(5, 256, generator=torch.Generator().manual_seed(2))
    gradients = []
    for place in (torch.device("cpu"), device):
        leaf = x.clone().to(place).requires_grad_()
        FrozenLinear(stored.to(place))(leaf).square().sum().backward()
        gradients.append(leaf.grad.cpu())
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-3, rtol=1e-3)


def test_angles_of_a_long_stream(device):
    position = torch.tensor([[0, 1, 777, 2**20 + 3, 10**9 + 7]])
    here = rotary_angle(position, rotary_frequencies(64, 1e6, position.device))
    there = rotary_angle(position.to(device), rotary_frequencies(64, 1e6, device)).cpu()
    torch.testing.assert_close(there.cos().float(), here.cos().float(), atol=1e-5, rtol=0.0)
    torch.testing.assert_close(there.sin().float(), here.sin().float(), atol=1e-5, rtol=0.0)
