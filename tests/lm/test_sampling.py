"""Sampling: reproducible per row in any batch, filters, frequencies."""

from __future__ import annotations

import torch

from speechgpt2.lm.sampling import Sampler, SamplingParams, gumbel, scramble

PROBABILITIES = torch.tensor([0.4, 0.05, 0.3, 0.2, 0.05])


def frequencies(draws: int = 4000, **settings) -> torch.Tensor:
    """One row per draw, all with one seed, each at its own position."""
    sampling = SamplingParams.for_batch(1, seed=7, **settings)
    sampling = SamplingParams(*(leaf.expand(draws) for leaf in sampling))
    logits = PROBABILITIES.log().expand(draws, 1, -1)
    drawn = Sampler(sampling, torch.arange(draws)).sample(logits, 0)[:, 0]
    return torch.bincount(drawn, minlength=5) / draws


def test_sample_frequencies_match_probabilities():
    torch.testing.assert_close(frequencies(temperature=1.0, top_k=0, top_p=1.0), PROBABILITIES, atol=0.025, rtol=0)


def test_low_temperature_sharpens():
    wanted = (PROBABILITIES.log() / 0.5).softmax(0)
    torch.testing.assert_close(frequencies(temperature=0.5, top_k=0, top_p=1.0), wanted, atol=0.025, rtol=0)


def test_top_k_keeps_the_likeliest_tokens():
    wanted = torch.tensor([0.4, 0, 0.3, 0.2, 0]) / 0.9
    torch.testing.assert_close(frequencies(temperature=1.0, top_k=3, top_p=1.0), wanted, atol=0.025, rtol=0)


def test_top_p_keeps_the_nucleus():
    wanted = torch.tensor([0.4, 0, 0.3, 0, 0]) / 0.7
    torch.testing.assert_close(frequencies(temperature=1.0, top_k=0, top_p=0.6), wanted, atol=0.025, rtol=0)
    only = frequencies(draws=50, temperature=1.0, top_k=0, top_p=0.0)
    assert only[0] == 1


def test_top_p_applies_after_top_k():
    """Of (.4, .3)/.7 the first alone is .571: below .6, so both stay; below .5 it is alone."""
    assert frequencies(temperature=1.0, top_k=2, top_p=0.6)[2] > 0.3
    assert frequencies(temperature=1.0, top_k=2, top_p=0.5)[0] == 1


def test_temperature_zero_is_greedy():
    logits = torch.randn(6, 3, 50)
    drawn = Sampler(SamplingParams.greedy(6), torch.arange(6)).sample(logits, 0)
    assert torch.equal(drawn, logits.argmax(-1))


def test_minus_infinity_is_never_sampled():
    logits = torch.full((200, 1, 30), -torch.inf)
    logits[..., [4, 9]] = 0.0
    drawn = Sampler(SamplingParams.for_batch(200, top_k=0, top_p=1.0), torch.zeros(200, dtype=torch.int64)).sample(
        logits, 0
    )
    assert set(drawn.flatten().tolist()) == {4, 9}


def test_row_samples_do_not_depend_on_the_batch():
    logits, position = torch.randn(5, 2, 300), torch.tensor([3, 900, 0, 17, 5])
    sampling = SamplingParams(
        torch.tensor([0.8, 1.0, 0.0, 1.3, 0.8]),
        torch.tensor([50, 0, 1, 7, 50]),
        torch.tensor([0.9, 1.0, 1.0, 0.8, 0.9]),
        torch.tensor([1, 2, 3, 4, -5]),
    )
    together = Sampler(sampling, position).sample(logits, 1)
    assert torch.equal(together, Sampler(sampling, position).sample(logits, 1))
    for row in range(5):
        alone = SamplingParams(*(leaf[row : row + 1] for leaf in sampling))
        assert torch.equal(
            Sampler(alone, position[row : row + 1]).sample(logits[row : row + 1], 1), together[row : row + 1]
        )


def test_noise_depends_on_seed_position_and_draw():
    tokens, zero = torch.arange(64)[None, None], torch.zeros(1, dtype=torch.int64)
    noises = [
        gumbel(zero + seed, zero + position, number, tokens)
        for seed in (0, 1, 2**40, -1)
        for position in (0, 1)
        for number in (0, 1)
    ]
    for i, a in enumerate(noises):
        assert a.isfinite().all()
        assert all(abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) < 0.5 for b in noises[:i])


def test_top_k_limits_the_candidates():
    position = torch.zeros(2, dtype=torch.int64)
    assert Sampler(SamplingParams.for_batch(2, top_k=50), position).candidates == 50
    assert Sampler(SamplingParams.greedy(2), position).candidates == 1
    assert Sampler(SamplingParams.for_batch(2, top_k=0), position).candidates == 1024
    assert Sampler(SamplingParams.for_batch(2, top_k=50), position).sample(torch.zeros(2, 1, 20), 0).max() < 20


def test_planned_noise_equals_noise_on_demand():
    logits, position, sampling = (
        torch.randn(3, 4, 70),
        torch.tensor([5, 0, 31]),
        SamplingParams.for_batch(3, temperature=1.5),
    )
    ahead = Sampler(sampling, position, planned=range(1, 5), tokens=70)
    assert ahead.noise is not None and ahead.noise.shape == (3, 4, 70)
    assert torch.equal(ahead.sample(logits, 1), Sampler(sampling, position).sample(logits, 1))
    assert torch.equal(ahead.sample(logits[:, 2:], 3), ahead.sample(logits, 1)[:, 2:])


def test_ties_break_the_same_way_in_any_batch():
    """In bfloat16 many logits are equal; the choice among them must not depend on the top-k of other rows."""
    logits = torch.randint(0, 3, (2, 1, 400)).float()
    cold = SamplingParams.greedy(1)
    warm = SamplingParams.for_batch(1, top_k=40)
    both = SamplingParams(*(torch.cat(leaves) for leaves in zip(cold, warm)))
    alone = Sampler(cold, torch.zeros(1, dtype=torch.int64)).sample(logits[:1], 0)
    assert torch.equal(Sampler(both, torch.zeros(2, dtype=torch.int64)).sample(logits, 0)[:1], alone)


def test_scramble_is_a_bijection_without_order():
    x = torch.arange(1 << 16)
    y = scramble(x)
    assert len(y.unique()) == len(x) and int(y.max()) < 1 << 32
    assert abs(torch.corrcoef(torch.stack([x.double(), y.double()]))[0, 1]) < 0.02
