"""Qwen3 (https://arxiv.org/abs/2505.09388): no biases, normalised queries and keys, a configured head size."""

from __future__ import annotations

from speechgpt2.lm.families.family import Family

QWEN3 = Family("qwen3", qk_norm=True, head_size=128, unsupported=("use_sliding_window", "attention_bias"))
