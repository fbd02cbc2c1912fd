"""Qwen2 and Qwen2.5 (https://arxiv.org/abs/2407.10671, https://arxiv.org/abs/2412.15115): biases on q, k and v."""

from __future__ import annotations

from speechgpt2.lm.families.family import Family

QWEN2 = Family("qwen2", attention_bias=True, unsupported=("use_sliding_window",))
