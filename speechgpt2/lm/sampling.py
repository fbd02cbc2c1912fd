"""Sampling of tokens. Each row has its own parameters and its own noise.

The noise is counter-based (as in Salmon et al., 2011, https://doi.org/10.1145/2063384.2063405): a hash of the row's
seed, its position, the number of the draw at that position, and the token. So a row's samples depend on the row alone,
not on its neighbours, its place in the batch or earlier draws. A sample is the maximum of logits plus Gumbel noise.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from speechgpt2.lm.config import SamplingConfig
from speechgpt2.nn.sync import can_sync

MAX_CANDIDATES = 1024  # a draw considers so many of the likeliest tokens: all codes, and the relevant text tokens
LOW_32_BITS = 2**32 - 1
# Odd, and not small multiples of each other, so that different (seed, position, draw, token) have different counters.
SEED_STEP, HIGH_STEP, POSITION_STEP, DRAW_STEP, TOKEN_STEP = 0x5851F42D, 0x41C64E6D, 0x3C6EF35F, 0x2545F491, 0x1B873593


class SamplingParams(NamedTuple):
    """Sampling parameters of each row.

    `temperature [B]` (float32) 0 is greedy, `top_k [B]` (int64) 0 and `top_p [B]` (float32) 1 keep all tokens,
    `seed [B]` is int64. Rows are selected and replaced like those of a state (streaming.py).
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    seed: Tensor

    @classmethod
    def for_batch(
        cls,
        batch: int = 1,
        temperature: float = 0.8,
        top_k: int = 50,
        top_p: float = 0.9,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> SamplingParams:
        """Return the same parameters for `batch` rows, with seeds that count up. The defaults are the released ones."""
        return cls(
            torch.full((batch,), temperature, dtype=torch.float32, device=device),
            torch.full((batch,), top_k, dtype=torch.int64, device=device),
            torch.full((batch,), top_p, dtype=torch.float32, device=device),
            torch.arange(seed, seed + batch, dtype=torch.int64, device=device),
        )

    @classmethod
    def from_config(cls, config: SamplingConfig, seed: int = 0, device: str | torch.device = "cpu") -> SamplingParams:
        """Return the parameters of one row that a model is sampled with by default."""
        return cls.for_batch(1, config.temperature, config.top_k, config.top_p, seed, device)

    @classmethod
    def greedy(cls, batch: int = 1, device: str | torch.device = "cpu") -> SamplingParams:
        """Return parameters that choose the likeliest token."""
        return cls.for_batch(batch, temperature=0.0, device=device)


class Sampler:
    """Samples tokens at one position of each row. Work that several draws share is done once."""

    def __init__(self, sampling: SamplingParams, position: Tensor, planned: range = range(0), tokens: int = 0):
        """Prepare the draws at `position [B]`.

        Args:
            sampling: Parameters of each row.
            position: Position of each row, `[B]`.
            planned: Numbers of draws that will happen, whose noise is computed at once.
            tokens: Vocabulary of the planned draws.
        """
        random, sync = sampling.temperature > 0, can_sync(position)
        # Without synchronising, the general case is assumed.
        self.any_random, self.all_random = not sync or bool(random.any()), sync and bool(random.all())
        self.seed, self.position, self.random = sampling.seed, position, random[:, None, None]
        self.temperature = torch.where(random, sampling.temperature, 1.0)[:, None, None]
        self.top_k = torch.where(sampling.top_k > 0, sampling.top_k, MAX_CANDIDATES)
        self.candidates = MAX_CANDIDATES
        if sync:
            self.candidates = min(MAX_CANDIDATES, int(torch.where(random, self.top_k, 1).max()))
        self.top_p = sampling.top_p[:, None, None]
        self.planned, self.noise = planned, None
        if self.any_random and len(planned):
            every = torch.arange(tokens, device=position.device).expand(len(position), len(planned), tokens)
            self.noise = gumbel(self.seed, position, planned.start, every)

    def sample(self, logits: Tensor, first_draw: int) -> Tensor:
        """Sample N tokens per row.

        Temperature, top-k and top-p apply in this order, each to the tokens that the one before kept. A logit of −inf
        is never sampled.

        Args:
            logits: `[B, N, V]`.
            first_draw: Number of the first of these N draws at the position.

        Returns:
            Tokens `[B, N]`.
        """
        if not self.any_random:
            return logits.argmax(-1)
        scores, tokens = logits.float().topk(min(self.candidates, logits.shape[-1]), dim=-1)  # descending
        rank = torch.arange(scores.shape[-1], device=logits.device)
        scores = (scores / self.temperature).masked_fill(rank >= self.top_k[:, None, None], -torch.inf)
        probability = scores.softmax(-1)
        before = probability.cumsum(-1) - probability
        scores = scores.masked_fill((before >= self.top_p) & (rank > 0), -torch.inf)
        best = (scores + self._noise(tokens, first_draw)).argmax(-1, keepdim=True)
        sampled = tokens.gather(-1, best)[..., 0]
        return sampled if self.all_random else torch.where(self.random[..., 0], sampled, logits.argmax(-1))

    def _noise(self, tokens: Tensor, first_draw: int) -> Tensor:
        if self.noise is None or first_draw not in self.planned:
            return gumbel(self.seed, self.position, first_draw, tokens)
        index = first_draw - self.planned.start
        return self.noise[:, index : index + tokens.shape[1]].gather(-1, tokens)


def unpack_bits(words: Tensor, count: int) -> Tensor:
    """Return the first `count` bits of each row of `words [B, W]` int32, the lowest first, `[B, count]` bool."""
    bits = torch.arange(32, dtype=torch.int32, device=words.device)
    return ((words[:, :, None] >> bits) & 1).flatten(1)[:, :count] != 0


def gumbel(seed: Tensor, position: Tensor, first_draw: int, tokens: Tensor) -> Tensor:
    """Return the Gumbel noise `[B, N, C]` of the `tokens [B, N, C]` in draws numbered from `first_draw`."""
    row = ((seed & LOW_32_BITS) + (seed >> 32) * HIGH_STEP & LOW_32_BITS) * SEED_STEP + position * POSITION_STEP
    draw = torch.arange(first_draw, first_draw + tokens.shape[1], device=tokens.device) * DRAW_STEP
    counter = row[:, None, None] + draw[:, None] + tokens * TOKEN_STEP
    uniform = ((scramble(counter) >> 9).float() + 0.5) / 2**23  # strictly between 0 and 1, exact in float32
    return -torch.log(-torch.log(uniform))


def scramble(x: Tensor) -> Tensor:
    """Permute the values of the low 32 bits without visible order (three multiply-xorshift rounds), int64."""
    x = x & LOW_32_BITS
    x = (x ^ x >> 16) * 0x21F0AAAD & LOW_32_BITS
    x = (x ^ x >> 15) * 0x735A2D97 & LOW_32_BITS
    x = (x ^ x >> 15) * 0x2C1B3C6D & LOW_32_BITS
    return x ^ x >> 15
