"""Attention gives a row the same bits wherever it is in a batch."""

import pytest
import torch

from speechgpt2.nn.attention import attention


@pytest.mark.parametrize("queries", [1, 2, 3, 5, 12])
@pytest.mark.parametrize("keys", [7, 16, 52, 128])
def test_result_does_not_depend_on_the_place_in_the_batch(queries, keys):
    generator = torch.Generator().manual_seed(queries)
    q, k, v = (torch.randn(8, 4, steps, 12, generator=generator) for steps in (queries, keys, keys))
    mask = torch.rand(8, 1, queries, keys, generator=generator) > 0.3
    mask[..., 0] = True
    order = torch.tensor([5, 3, 1, 7, 0, 2, 6, 4])
    with torch.inference_mode():
        y = attention(q, k, v, mask)
        moved = attention(q[order], k[order], v[order], mask[order])
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        alone = attention(q, k, v, mask)
        torch.set_num_threads(threads)
    assert torch.equal(moved, y[order]) and torch.equal(alone, y)
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask)
    assert torch.allclose(y, wanted, atol=1e-6)
