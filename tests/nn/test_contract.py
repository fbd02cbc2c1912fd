"""Every layer follows the streaming contract."""

import copy

import pytest
import torch
import torch.nn.functional as F

from speechgpt2.nn.conv import CausalConv1d, CausalConvTranspose1d, Downsample, convolve
from speechgpt2.nn.convnext import ConvNeXt, ConvNeXtConfig
from speechgpt2.nn.linear import pack
from speechgpt2.nn.transformer import QUERY_BLOCK, Transformer, TransformerConfig
from speechgpt2.streaming import where_active
from tests.contract import verify_contract

CHUNKS = [[1], [3, 1, 5], [1000]]


def modules():
    torch.manual_seed(0)
    yield "conv", CausalConv1d(4, 6, 5), (2, 4, 40), 2, 1
    yield "dilated", CausalConv1d(4, 4, 3, dilation=5, groups=4), (2, 4, 40), 2, 1
    yield "leaky", CausalConv1d(8, 8, 3, dilation=2, slope=0.1), (2, 8, 40), 2, 1
    yield "pointwise", CausalConv1d(4, 6, 1), (2, 4, 40), 2, 1
    yield "downsample", Downsample(4), (2, 4, 40), 2, 2
    yield "transposed", CausalConvTranspose1d(4, 3, 5), (2, 4, 40), 2, 1
    yield "convnext", ConvNeXt(5, ConvNeXtConfig((1, 2), (8, 12))), (2, 40, 5), 1, 1
    yield "transformer", Transformer(TransformerConfig(16, 2, 2, 32, context=7)), (2, 40, 16), 1, 1


each_module = pytest.mark.parametrize(
    "name,module,shape,time,grid", list(modules()), ids=lambda v: v if isinstance(v, str) else ""
)


@pytest.mark.parametrize("packs", [False, True], ids=["", "packed"])
@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
@each_module
def test_streaming_contract(name, module, shape, time, grid, chunks, packs):
    if packs:
        module = copy.deepcopy(module)
        pack(module, rows=12)
    with torch.no_grad():
        verify_contract(module, module.init_state, torch.randn(shape), time, chunks, grid)


def ring_transformer(context=7):
    torch.manual_seed(0)
    return Transformer(TransformerConfig(16, 2, 2, 32, context=context))


@pytest.mark.parametrize("chunks", [*CHUNKS, [20], [2, 30]], ids=str)
@pytest.mark.parametrize("context", [1, 7, 13])
def test_streaming_contract_in_place(context, chunks):
    """Half of the input, 20 steps, is the longest chunk that may be taken back."""
    module = ring_transformer(context)
    with torch.no_grad():
        verify_contract(module, lambda batch: module.init_ring(batch, 20), torch.randn(2, 40, 16), 1, chunks)


def test_ring_is_written_in_place():
    module = ring_transformer()
    state = module.init_ring(2, 3)
    with torch.no_grad():
        for steps in (3, 2, 40, 3):
            _, after = module(torch.randn(2, steps, 16), state)
            assert all(a is b for a, b in zip(after.layers, state.layers, strict=True))
            state = after
    assert state.cells == 16 and state.position.tolist() == [48, 48]


@pytest.mark.parametrize("taken_back", [1, 3, 10])
def test_ring_takes_a_chunk_back(taken_back):
    """Up to `cells − context + 1` = 10 steps; a row that idles meanwhile stays as it is."""
    module, x, other = ring_transformer(), torch.randn(2, 60, 16), torch.randn(2, 60, 16)
    with torch.no_grad():
        wanted, _ = module(x)
        state, pieces = module.init_ring(2, 3), []
        for start in range(0, 60, 3):
            module(other[:, start : start + taken_back], state)
            y, moved = module(x[:, start : start + 3], state)
            pieces.append(y)
            state = where_active(torch.tensor([True, False]), moved, state)
            _, moved = module(torch.cat([other[:1, :3], x[1:, start : start + 3]]), state)
            state = where_active(torch.tensor([False, True]), moved, state)
    torch.testing.assert_close(torch.cat(pieces, 1), wanted, atol=2e-6, rtol=1e-5)


@each_module
def test_packing_does_not_change_the_output(name, module, shape, time, grid):
    other, x = copy.deepcopy(module), torch.randn(shape)
    pack(other, rows=12)
    with torch.no_grad():
        torch.testing.assert_close(other(x)[0], module(x)[0], atol=2e-6, rtol=1e-5)


def test_chunk_may_exceed_window_and_block():
    torch.manual_seed(0)
    module = Transformer(TransformerConfig(8, 2, 1, 16, context=5))
    x = torch.randn(1, 2 * QUERY_BLOCK + 3, 8)
    with torch.no_grad():
        offline, _ = module(x)
        state = module.init_state(1)
        pieces = []
        for chunk in x.split(7, dim=1):
            y, state = module(chunk, state)
            pieces.append(y)
    assert torch.allclose(torch.cat(pieces, 1), offline, atol=2e-6)


def test_attention_ignores_keys_before_its_window():
    torch.manual_seed(0)
    module = Transformer(TransformerConfig(8, 2, 1, 16, context=5))
    x = torch.randn(1, 20, 8)
    changed = x.clone()
    changed[:, 0] = torch.randn(8)
    with torch.no_grad():
        same = (module(x)[0] == module(changed)[0]).all(-1)[0]
    assert not same[:5].any() and same[5:].all()


def test_gradients_reach_every_parameter():
    torch.manual_seed(0)
    for name, module, shape, *_ in modules():
        module(torch.randn(shape))[0].square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters()), name


def test_downsample_completes_an_odd_end_and_honours_lengths():
    torch.manual_seed(0)
    module = Downsample(3)
    x = torch.randn(2, 3, 9)
    with torch.no_grad():
        whole, _ = module(x)
        assert whole.shape == (2, 3, 5)
        padded, _ = module(torch.cat([x, torch.randn(2, 3, 4)], -1), None, torch.tensor([9, 6]))
        assert torch.equal(padded[:1, :, :5], whole[:1])
        assert torch.allclose(padded[1, :, :3], module(x[1:, :, :6])[0][0], atol=1e-6)


@pytest.mark.parametrize("in_place", [False, True])
def test_rotary_angles_stay_exact_after_days(in_place):
    """An hour is 360,000 steps; attention must not depend on the position in a stream."""
    torch.manual_seed(0)
    module = Transformer(TransformerConfig(16, 2, 1, 32, context=6))
    x = torch.randn(1, 12, 16)
    with torch.no_grad():
        early = module(x)[0][:, 6:]
        state = module.init_ring(1, 12) if in_place else module.init_state(1)
        late = module(x, state._replace(position=torch.tensor([10_000_000])))[0][:, 6:]
    assert torch.allclose(early, late, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("steps", [1, 5, 40])  # the last goes to the convolution kernel
@pytest.mark.parametrize("stride,dilation,groups,bias", [(1, 1, 1, True), (2, 1, 1, False), (1, 3, 3, True)])
def test_few_outputs_equal_the_convolution(batch, steps, stride, dilation, groups, bias):
    torch.manual_seed(0)
    weight, b = torch.randn(9, 12 // groups, 4), torch.randn(9) if bias else None
    x = torch.randn(batch, 12, (steps - 1) * stride + 3 * dilation + 1)
    ours = convolve(x, weight, b, stride, dilation, groups)
    theirs = F.conv1d(x, weight, b, stride=stride, dilation=dilation, groups=groups)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_few_outputs_equal_the_transposed_convolution(bias):
    torch.manual_seed(0)
    layer = CausalConvTranspose1d(12, 5, 3, bias=bias)
    x = torch.randn(2, 12, 5)
    padded = torch.cat([x[..., :1], x], dim=-1)
    wanted = F.conv_transpose1d(padded, layer.weight, layer.bias, stride=3)[..., 3:-3]
    torch.testing.assert_close(layer(x)[0], wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("steps", [1, 12, 700])
def test_packed_convolution_in_bfloat16_streams_as_the_plain_one(steps, batch):
    """Where a processor has kernels for it, memory is laid out in another order, and so is the state."""
    torch.manual_seed(0)
    plain = CausalConv1d(96, 96, 11, dilation=3, groups=3, slope=0.1).bfloat16()
    packed, x = copy.deepcopy(plain), torch.randn(batch, 96, 2 * steps).bfloat16()
    pack(packed, rows=12)
    with torch.no_grad():
        wanted, past = plain(x)
        first, state = packed(x[..., :steps])
        rest, state = packed(x[..., steps:], state)
    assert state.shape == past.shape and torch.equal(state, past)
    torch.testing.assert_close(torch.cat([first, rest], dim=-1), wanted, atol=0.01, rtol=0.02)
