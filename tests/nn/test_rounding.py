"""Rounding of matrices: levels of least squares, and errors that later inputs make up for."""

import pytest
import torch

from speechgpt2.nn.quantized import Quantization, quantize
from speechgpt2.nn.rounding import Inputs, int4_levels, round_matrix

KINDS = [("int8", 192), ("int4", 32)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def correlated_inputs(count=2000, width=192):
    """Activations that depend on each other, of very different power."""
    mix = torch.randn(width // 4, width, generator=generator(1))
    x = torch.randn(count, width // 4, generator=generator(2)) @ mix
    x += 0.3 * torch.randn(count, width, generator=generator(3))
    return x * torch.logspace(-1, 1, width)[torch.randperm(width, generator=generator(4))]


def dequantized(rounded, group):
    return rounded.integers * rounded.scales.repeat_interleave(group, 1) + rounded.offsets.repeat_interleave(group, 1)


def test_fitted_levels_have_a_smaller_error_than_those_over_the_range():
    weights = torch.randn(500, 32, generator=generator())
    low, high = weights.aminmax(dim=1, keepdim=True)
    scale = (high - low) / 15
    plain = ((weights - low) / scale).round() * scale + low
    levels = int4_levels(weights, None, torch.bfloat16)
    fitted = levels.values(levels.round(weights))
    assert (fitted - weights).square().sum() < 0.93 * (plain - weights).square().sum()


def test_inputs_with_power_have_a_smaller_error():
    weights, power = torch.randn(500, 32, generator=generator()), torch.ones(32)
    power[:4] = 100.0
    error = {}
    for name, by in (("plain", None), ("weighted", power)):
        levels = int4_levels(weights, by, torch.bfloat16)
        error[name] = (levels.values(levels.round(weights)) - weights).square().mean(0)
    assert error["weighted"][:4].mean() < 0.7 * error["plain"][:4].mean()


@pytest.mark.parametrize("kind, group", KINDS)
def test_uncorrelated_inputs_of_one_power_are_rounded_to_the_nearest_level(kind, group):
    weight = torch.randn(64, 192, generator=generator())
    plain = round_matrix(weight, kind, group, torch.bfloat16)
    same = round_matrix(weight, kind, group, torch.bfloat16, Inputs.from_moments(3.0 * torch.eye(192)))
    assert torch.equal(plain.integers, same.integers)
    assert torch.equal(plain.scales, same.scales) and torch.equal(plain.offsets, same.offsets)


@pytest.mark.parametrize("kind, group", KINDS)
def test_outputs_change_less_if_the_inputs_are_known(kind, group):
    x, weight = correlated_inputs(), torch.randn(64, 192, generator=generator())
    inputs = Inputs.from_moments(x[:1000].T @ x[:1000] / 1000)
    errors = []
    for known in (None, inputs):
        rounded = round_matrix(weight, kind, group, torch.bfloat16, known)
        errors.append((x[1000:] @ (dequantized(rounded, group) - weight).T).square().mean())
    assert errors[1] < 0.5 * errors[0]


def test_inputs_that_were_never_active_do_no_harm():
    x, weight = correlated_inputs(), torch.randn(64, 192, generator=generator())
    x[:, :40] = 0.0
    rounded = round_matrix(weight, "int4", 32, torch.bfloat16, Inputs.from_moments(x.T @ x / len(x)))
    error = (dequantized(rounded, 32) - weight)[:, :32].abs()
    assert error.max() < 0.5 and rounded.integers.isfinite().all()


@pytest.mark.parametrize("quantization", [Quantization("int8"), Quantization("int4", 32)], ids=str)
def test_rows_are_rounded_independently(quantization, monkeypatch):
    x, weight = correlated_inputs(), torch.randn(200, 192, generator=generator())
    inputs = Inputs.from_moments(x.T @ x / len(x))
    whole = quantize(weight, quantization, inputs)
    monkeypatch.setattr("speechgpt2.nn.quantized.QUANTIZED_AT_ONCE", 64 * 192)
    parts = quantize(weight, quantization, inputs)
    different = (whole.values != parts.values).float().mean()
    assert different < 0.001  # sums in another order
