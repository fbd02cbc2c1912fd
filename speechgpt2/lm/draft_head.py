"""The draft head proposes text tokens, so that the model writes several per step (speculative decoding).

The model reads all proposed tokens in one call and keeps those that it would have written itself (Leviathan et al.,
2023, https://arxiv.org/abs/2211.17192). The head is one small recurrent cell for any number of tokens, as in ReDrafter
(Cheng et al., 2024, https://arxiv.org/abs/2403.09919): the hidden state that predicts a token, and that token, give the
state that predicts the token after it.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from speechgpt2.nn.linear import Linear


class DraftHead(nn.Module):
    """x + W_out silu(W_state x + W_token norm(e)), where e is the embedding of the token that x predicts.

    W_out starts at zero, so a new head proposes the same token again.
    """

    def __init__(self, width: int):
        super().__init__()
        self.state = Linear(width, width, bias=False)
        self.token = Linear(width, width, bias=False)
        self.out = Linear(width, width, bias=False)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map the state and the embedding of its token, both `[..., D]`, to the next state `[..., D]`."""
        return advance(x, embedding, self.state, self.token, self.out)


def advance(x: Tensor, embedding: Tensor, state: Linear, token: Linear, out: Linear) -> Tensor:
    """Return x + out(silu(state(x) + token(norm(embedding)))): the state `x [..., D]` after it has seen a token.

    The chained heads of the patch decoder use it as well.
    """
    normed = F.rms_norm(embedding, embedding.shape[-1:]).to(x.dtype)
    return x + out(F.silu(state(x) + token(normed)))
