"""RMSNorm: packed, it equals PyTorch's."""

from __future__ import annotations

import pytest
import torch

from speechgpt2.nn.linear import pack
from speechgpt2.nn.norm import RMSNorm


@pytest.mark.parametrize("scale", [0.0, 1e-4, 1.0, 1e3])
def test_packed_norm_equals_torch(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    norm = RMSNorm(48, eps=1e-6)
    torch.nn.init.normal_(norm.weight, generator=generator)
    x = scale * torch.randn(2, 3, 48, generator=generator)
    expected = torch.nn.functional.rms_norm(x, (48,), norm.weight, 1e-6).detach()
    pack(norm)
    with torch.inference_mode():
        torch.testing.assert_close(norm(x), expected, rtol=1e-5, atol=1e-6)


def test_half_precision_is_kept_and_computed_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    norm, x = RMSNorm(64, eps=1e-6).bfloat16(), torch.randn(5, 64, generator=generator).bfloat16()
    expected = torch.nn.functional.rms_norm(x.float(), (64,), norm.weight.float(), 1e-6)
    pack(norm)
    with torch.inference_mode():
        y = norm(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected.bfloat16(), rtol=0, atol=0)


def test_gradients_pass_a_packed_norm() -> None:
    norm, x = RMSNorm(8), torch.ones(1, 8, requires_grad=True)
    pack(norm)
    norm(x).sum().backward()
    assert norm.weight.grad is not None and bool(norm.weight.grad.ne(0).all())
