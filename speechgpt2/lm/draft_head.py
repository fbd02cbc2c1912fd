"""Guesses at the tokens to come, so that text is written several tokens at a step (speculative decoding, Leviathan et
al., 2023): what was guessed is taken in at once, and kept as far as the model itself would have written it.

The guesser is one small recurrent cell (as in ReDrafter, Cheng et al., 2024), whatever the number of guesses: a state
that foretells a token, and that token, give a state that foretells the one after it.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from speechgpt2.nn.linear import Linear


class DraftHead(nn.Module):
    """x + W_out silu(W_state x + W_token e): `x, e [..., D] -> [..., D]`, e the normalised embedding of x's token.

    W_out starts at zero: a new cell expects the same token again.
    """

    def __init__(self, width: int):
        super().__init__()
        self.state = Linear(width, width, bias=False)
        self.token = Linear(width, width, bias=False)
        self.out = Linear(width, width, bias=False)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        token = F.rms_norm(embedding, embedding.shape[-1:])
        return x + self.out(F.silu(self.state(x) + self.token(token)))
