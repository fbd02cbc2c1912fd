"""Training and inference use different kernels, which compute the same attention."""

import pytest
import torch

from speechgpt2.nn.attention import attention


@pytest.mark.parametrize("kind", ["all", "causal", "mask"])
def test_training_kernel_equals_the_fused_one(kind):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 7, 8, requires_grad=True) for _ in range(3))
    mask = torch.rand(2, 1, 7, 7) < 0.5
    mask[..., 0] = True
    given = {"all": {}, "causal": {"causal": True}, "mask": {"mask": mask}}[kind]
    learning = attention(q, k, v, **given)
    with torch.no_grad():
        answering = attention(q, k, v, **given)
    torch.testing.assert_close(learning, answering, atol=1e-6, rtol=1e-5)
    learning.sum().backward()
    assert all(x.grad.isfinite().all() and x.grad.any() for x in (q, k, v) if kind != "all" or x is v)
