"""Drawing tokens, per row: each row has its own settings and its own randomness.

The noise is counter-based (as in Salmon et al., 2011): a hash of the row's seed, its position, the number of the draw
at that position and the token. So what a row draws depends on nothing but the row itself: not on its neighbours, not
on its place in the batch, not on what was drawn before. The draw is the largest of logits plus Gumbel noise.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from speechgpt2.nn.sync import can_sync

MOST = 1024  # of the likeliest tokens, that a draw looks at: all codes, and all that matters of a vocabulary
LOW = 2**32 - 1
# Odd, and no small multiples of each other: different (seed, position, draw, token) fall on different counters.
SEED_STEP, HIGH_STEP, POSITION_STEP, DRAW_STEP, TOKEN_STEP = 0x5851F42D, 0x41C64E6D, 0x3C6EF35F, 0x2545F491, 0x1B873593


class SamplingParams(NamedTuple):
    """Settings of each row: `temperature [B]` float32 (0: the likeliest token), `top_k [B]` int64 (0: all), `top_p [B]`
    float32 (1: all), `seed [B]` int64. Rows are picked and replaced as those of any state (streaming.py).
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    seed: Tensor

    @classmethod
    def of(
        cls,
        batch: int = 1,
        temperature: float = 0.8,
        top_k: int = 50,
        top_p: float = 0.9,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> SamplingParams:
        """The same settings for all rows (the defaults are the released ones), with seeds counting up from `seed`."""
        return cls(
            torch.full((batch,), temperature, dtype=torch.float32, device=device),
            torch.full((batch,), top_k, dtype=torch.int64, device=device),
            torch.full((batch,), top_p, dtype=torch.float32, device=device),
            torch.arange(seed, seed + batch, dtype=torch.int64, device=device),
        )

    @classmethod
    def greedy(cls, batch: int = 1, device: str | torch.device = "cpu") -> SamplingParams:
        """Always the likeliest token."""
        return cls.of(batch, temperature=0.0, device=device)


class Sampler:
    """Draws tokens for one position of each row. What the draws share is made ready once: a patch takes ten of them.

    `ahead`: the numbers of draws among `tokens` tokens that are sure to come, whose noise is then made at once.
    """

    def __init__(self, sampling: SamplingParams, position: Tensor, ahead: range = range(0), tokens: int = 0):
        warm, looks = sampling.temperature > 0, can_sync(position)
        self.some_warm, self.all_warm = not looks or bool(warm.any()), looks and bool(warm.all())
        self.seed, self.position, self.warm = sampling.seed, position, warm[:, None, None]
        self.temperature = torch.where(warm, sampling.temperature, 1.0)[:, None, None]
        self.top_k = torch.where(sampling.top_k > 0, sampling.top_k, MOST)
        self.widest = min(MOST, int(torch.where(warm, self.top_k, 1).max())) if looks else MOST
        self.top_p = sampling.top_p[:, None, None]
        self.ahead, self.noise = ahead, None
        if self.some_warm and len(ahead):
            every = torch.arange(tokens, device=position.device).expand(len(position), len(ahead), tokens)
            self.noise = gumbel(self.seed, position, ahead.start, every)

    def sample(self, logits: Tensor, first_draw: int) -> Tensor:
        """From `logits [B, N, V]` -> `[B, N]`: N draws in each row, numbered from `first_draw` on.

        The filters apply in the order temperature, top-k, top-p; each sees what the one before left. A logit of −inf
        is never drawn.
        """
        if not self.some_warm:
            return logits.argmax(-1)
        scores, tokens = logits.float().topk(min(self.widest, logits.shape[-1]), dim=-1)  # the likeliest first
        rank = torch.arange(scores.shape[-1], device=logits.device)
        scores = (scores / self.temperature).masked_fill(rank >= self.top_k[:, None, None], -torch.inf)
        probability = scores.softmax(-1)
        before = probability.cumsum(-1) - probability
        scores = scores.masked_fill((before >= self.top_p) & (rank > 0), -torch.inf)
        best = (scores + self._noise(tokens, first_draw)).argmax(-1, keepdim=True)
        drawn = tokens.gather(-1, best)[..., 0]
        return drawn if self.all_warm else torch.where(self.warm[..., 0], drawn, logits.argmax(-1))

    def _noise(self, tokens: Tensor, first: int) -> Tensor:
        if self.noise is None or first not in self.ahead:
            return gumbel(self.seed, self.position, first, tokens)
        index = first - self.ahead.start
        return self.noise[:, index : index + tokens.shape[1]].gather(-1, tokens)


def gumbel(seed: Tensor, position: Tensor, first: int, tokens: Tensor) -> Tensor:
    """Noise `[B, N, C]` for the `tokens [B, N, C]` of draws numbered from `first` on."""
    row = ((seed & LOW) + (seed >> 32) * HIGH_STEP & LOW) * SEED_STEP + position * POSITION_STEP
    draw = torch.arange(first, first + tokens.shape[1], device=tokens.device) * DRAW_STEP
    counter = row[:, None, None] + draw[:, None] + tokens * TOKEN_STEP
    uniform = ((scramble(counter) >> 9).float() + 0.5) / 2**23  # strictly between 0 and 1, exact in float32
    return -torch.log(-torch.log(uniform))


def scramble(x: Tensor) -> Tensor:
    """A bijection of the low 32 bits without visible order (three multiply-xorshift rounds); int64 in and out."""
    x = x & LOW
    x = (x ^ x >> 16) * 0x21F0AAAD & LOW
    x = (x ^ x >> 15) * 0x735A2D97 & LOW
    x = (x ^ x >> 15) * 0x2C1B3C6D & LOW
    return x ^ x >> 15
