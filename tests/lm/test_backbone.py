"""The decoder stack: the streaming contract, and equality with Qwen2."""

from __future__ import annotations

import pytest
import torch

from speechgpt2.errors import UserError
from speechgpt2.lm import backbone
from speechgpt2.lm.backbone import DecoderStack, StackState
from speechgpt2.lm.config import BackboneConfig, PatchDecoderConfig
from speechgpt2.lm.huggingface import stack_places
from speechgpt2.lm.rotary import rotary
from speechgpt2.streaming import select_rows
from tests import needs
from tests.contract import verify_contract

CONFIG = BackboneConfig(vocab=50, width=32, layers=2, heads=4, kv_heads=2, ffn=48)


@pytest.fixture
def stack(monkeypatch) -> DecoderStack:
    monkeypatch.setattr(backbone, "QUERY_BLOCK", 7)  # so that chunks are cut into blocks
    return random_stack(CONFIG)


def random_stack(config) -> DecoderStack:
    torch.manual_seed(0)
    stack = DecoderStack(config).eval()
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return stack


def rows(*seeds: int, steps: int) -> torch.Tensor:
    return torch.stack([torch.randn(steps, CONFIG.width, generator=torch.Generator().manual_seed(s)) for s in seeds])


@pytest.mark.parametrize("chunks", [[1], [3, 1, 8], [30]])
@torch.no_grad()
def test_streaming_equals_offline(stack, chunks):
    def step(x, state):
        return stack(x, state)

    verify_contract(step, lambda batch: stack.init_state(batch, 40), rows(1, 2, steps=30), 1, chunks, tolerance=1e-5)


@torch.no_grad()
def test_rows_of_different_lengths_equal_single_rows(stack):
    x, lengths = rows(1, 2, 3, steps=12), torch.tensor([12, 5, 0])
    more = rows(4, 5, 6, steps=3)
    y, state = stack(x, stack.init_state(3, 20), lengths)
    z, state = stack(more, state)
    assert state.position.tolist() == [15, 8, 3]
    for row, length in enumerate(lengths.tolist()):
        alone = torch.cat([x[row : row + 1, :length], more[row : row + 1]], dim=1)
        wanted, _ = stack(alone)
        torch.testing.assert_close(y[row, :length], wanted[0, :length], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(z[row], wanted[0, length:], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("few_keys", [0, 100], ids=["each row by itself", "all at once"])
@torch.no_grad()
def test_steps_with_inactive_rows_equal_single_rows(stack, monkeypatch, few_keys):
    monkeypatch.setattr(backbone, "FEW_KEYS", few_keys)
    x, lengths = rows(1, 2, 3, steps=12), torch.tensor([12, 5, 0])
    more, turns = rows(4, 5, 6, steps=4), [[1, 0, 1], [1, 1, 1], [0, 1, 1], [0, 0, 0]]
    _, state = stack(x, stack.init_state(3, 20), lengths)
    inputs = [[x[row, :length]] for row, length in enumerate(lengths.tolist())]
    for step, active in zip(more.split(1, dim=1), turns, strict=True):
        y, state = stack(step, state, torch.tensor(active))
        for row in range(3):
            if active[row]:
                inputs[row].append(step[row])
                wanted, _ = stack(torch.cat(inputs[row])[None])
                torch.testing.assert_close(y[row, 0], wanted[0, -1], atol=1e-5, rtol=1e-4)
    assert state.position.tolist() == [14, 7, 3]


@torch.no_grad()
def test_rewinding_forgets_later_positions(stack):
    x, wrong, right = rows(1, steps=9), rows(2, steps=6), rows(3, steps=6)
    _, state = stack(x, stack.init_state(1, 20))
    _, further = stack(wrong, state)
    back = StackState(torch.tensor([9]), further.layers)
    torch.testing.assert_close(stack(right, back)[0], stack(torch.cat([x, right], 1))[0][:, 9:], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_fork_leaves_the_original_unchanged(stack):
    x = rows(1, steps=9)
    _, state = stack(x, stack.init_state(1, 20))
    fork = select_rows(state, torch.tensor([0]))
    stack(rows(2, steps=6), fork)
    right = rows(3, steps=6)
    torch.testing.assert_close(stack(right, state)[0], stack(torch.cat([x, right], 1))[0][:, 9:], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_full_row_may_be_inactive(stack):
    """An inactive row writes past its position, at the end of the cache into the spare cell."""
    full, other = rows(1, steps=10), rows(2, steps=4)
    _, state = stack(rows(1, 3, steps=10), stack.init_state(2, 10), torch.tensor([10, 2]))
    _, state = stack(torch.cat([other, other]), state, torch.tensor([0, 4]))
    last = StackState(torch.tensor([9, 6]), state.layers)
    y, _ = stack(torch.cat([full[:, 9:], other[:, :1]]), last)
    torch.testing.assert_close(y[0], stack(full)[0][0, 9:], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_kv_length_does_not_change_the_output(stack):
    x, state = rows(1, 2, steps=10), stack.init_state(2, 30)
    for filled in (10, 17, 30):
        torch.testing.assert_close(stack(x, state, kv_length=filled)[0], stack(x)[0], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_overflow_is_refused_before_writing(stack):
    _, state = stack(rows(1, steps=8), stack.init_state(1, 10))
    before = state.layers[0].keys.clone()
    with pytest.raises(ValueError, match="capacity of 10"):
        stack(rows(2, steps=3), state)
    assert torch.equal(state.layers[0].keys, before)


def test_segments_equal_separate_sequences(stack):
    x = rows(1, 2, steps=20)
    segments = torch.tensor([[0] * 8 + [1] * 12, [4] * 3 + [2] * 9 + [-1] * 8])
    packed, _ = stack(x, segments=segments)
    for row, parts in enumerate(((8, 12), (3, 9, 8))):
        alone = torch.cat([stack(part[None])[0][0] for part in x[row].split(parts)])
        torch.testing.assert_close(packed[row], alone, atol=1e-5, rtol=1e-4)


def test_gradients_reach_every_parameter(stack):
    stack(rows(1, steps=9), segments=torch.tensor([[0] * 4 + [1] * 5]))[0].pow(2).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in stack.parameters())
    assert all(p.grad.abs().max() > 0 for p in stack.parameters())


def test_rotation_is_exact_at_large_positions():
    """Float32 angles would be wrong by some 1e-2 after a day."""
    far = torch.tensor([[720_001]])
    cos, _ = rotary(far, CONFIG)
    frequency = CONFIG.rope_theta ** (-torch.arange(0, CONFIG.head_dim, 2).double() / CONFIG.head_dim)
    torch.testing.assert_close(cos[0, 0, 0, : len(frequency)].double(), (720_001 * frequency).cos(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [{"heads": 5}, {"heads": 0}, {"kv_heads": 3}, {"width": 36, "heads": 12}])
def test_indivisible_sizes_are_refused(shape):
    with pytest.raises(UserError):
        BackboneConfig(**{**CONFIG.__dict__, **shape})


def test_output_equals_qwen2_of_transformers():
    transformers = needs.module("transformers", "dev")
    config = PatchDecoderConfig(width=32, layers=2, heads=4, ffn=48)
    for ours in (CONFIG, config):
        stack = random_stack(ours)
        theirs = transformers.Qwen2Config(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=ours.kv_heads,
            rms_norm_eps=ours.norm_eps,
            rope_theta=ours.rope_theta,
        )
        reference = transformers.Qwen2Model(theirs).eval()
        state = reference.state_dict()
        for name, place in qwen2_places(stack).items():
            state[name] = place
        reference.load_state_dict(state)
        x = rows(1, 2, steps=25)
        with torch.no_grad():
            wanted = reference(inputs_embeds=x).last_hidden_state
            torch.testing.assert_close(stack(x)[0], wanted, atol=1e-4, rtol=0)


def qwen2_places(stack: DecoderStack) -> dict[str, torch.Tensor]:
    return {name.removeprefix("model."): place for name, place in stack_places("model", stack).items()}
