"""Every order of multiplication gives the same product, for every number of rows and precision."""

import pytest
import torch
import torch.nn.functional as F

from speechgpt2.nn import linear as module
from speechgpt2.nn.linear import FLIP_TO, Linear, linear

TOLERANCE = {torch.float32: {"atol": 1e-5, "rtol": 1e-5}, torch.bfloat16: {"atol": 0.05, "rtol": 0.02}}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(0,), (1,), (1, 1), (3,), (2, 4), (5, 2, 3), (FLIP_TO + 1,)], ids=str)
@pytest.mark.parametrize("slow,flip_from", [(True, 2), (False, 8)])
def test_product(monkeypatch, dtype, shape, slow, flip_from):
    monkeypatch.setattr(module, "HALF_IS_SLOW", slow)
    monkeypatch.setattr(module, "FLIP_FROM", flip_from)
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(*s).to(dtype) for s in ((*shape, 16), (6, 16), (6,)))
    for b in (None, bias):
        y = linear(x, weight, b)
        assert y.dtype == dtype and y.shape == (*shape, 6)
        wanted = F.linear(x.float(), weight.float(), None if b is None else b.float())
        torch.testing.assert_close(y.float(), wanted, **TOLERANCE[dtype])


@pytest.mark.parametrize("rows", [1, 3, 20, 100])
def test_gradients(rows):
    torch.manual_seed(0)
    ours, theirs = Linear(8, 4), torch.nn.Linear(8, 4)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(rows, 8)
    for layer in (ours, theirs):
        layer(x).square().sum().backward()
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
    torch.testing.assert_close(ours.bias.grad, theirs.bias.grad)
