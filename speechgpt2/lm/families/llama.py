"""Llama 2 and 3 (https://arxiv.org/abs/2307.09288, https://arxiv.org/abs/2407.21783): no biases."""

from __future__ import annotations

from speechgpt2.lm.families.family import Family

LLAMA = Family("llama", unsupported=("attention_bias", "mlp_bias"))
