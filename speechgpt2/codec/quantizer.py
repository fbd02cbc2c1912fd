"""Residual vector quantization (Zeghidour et al., 2021): each codebook codes what the ones before it left over.

Codebooks are learnt by exponential moving averages of the vectors assigned to them (van den Oord et al., 2017), with
k-means on a first batch, and entries that fall out of use are put back where the data is.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechgpt2.codec.config import QuantizerConfig
from speechgpt2.nn.linear import Kernel, packed

CANDIDATES = 4  # entries that float64 decides among


class ResidualQuantizer(nn.Module):
    """`encode`: latent `[B, T, D]` -> codes `[B, T, K]`; `decode`: codes -> the sum of their vectors `[B, T, D]`."""

    def __init__(self, config: QuantizerConfig, dim: int):
        super().__init__()
        self.config = config
        self.codebooks = nn.ModuleList(Codebook(config.size, dim) for _ in range(config.codebooks))

    def encode(self, latent: Tensor) -> Tensor:
        residual, codes = latent, []
        for codebook in self.codebooks:
            codes.append(codebook.nearest(residual))  # type: ignore[operator]
            residual = residual - codebook.lookup(codes[-1])  # type: ignore[operator]
        return torch.stack(codes, dim=-1)

    def decode(self, codes: Tensor) -> Tensor:
        vectors = [book.lookup(code) for book, code in zip(self.codebooks, codes.unbind(-1))]  # type: ignore[operator]
        return torch.stack(vectors).sum(0)


class Codebook(nn.Module):
    """`size` vectors; `embed = embed_sum / usage`, both moving averages while it learns."""

    embed: Tensor
    embed_sum: Tensor
    usage: Tensor
    packed: Kernel | None = None

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.register_buffer("embed", torch.randn(size, dim) * dim**-0.5)
        self.register_buffer("embed_sum", self.embed.clone(), persistent=False)
        self.register_buffer("usage", torch.ones(size), persistent=False)

    def pack(self, rows: int, half: bool) -> None:
        """See `nn.linear.pack`; a codebook that is packed learns no more."""
        self.packed = self.packed or packed(self.embed, -self.embed.square().sum(-1) / 2, rows, half)

    def lookup(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self.embed)

    def nearest(self, x: Tensor) -> Tensor:
        """The nearest entry by Euclidean distance, `[..., D] -> [...]`.

        A quick product in float32 finds a few candidates, float64 decides among them: latents share a large offset, and
        with float32 alone codes would depend on how a stream was cut into chunks.
        """
        flat = x.reshape(-1, x.shape[-1]).float()
        likely = self._closeness(flat).topk(min(CANDIDATES, len(self.embed))).indices.sort(-1).values
        distance = (flat[:, None].double() - self.embed[likely].double()).square().sum(-1)
        return likely.gather(-1, distance.argmin(-1, keepdim=True)).view(x.shape[:-1])

    @torch.no_grad()
    def kmeans_init(self, x: Tensor, generator: torch.Generator, iterations: int = 10) -> None:
        """Start from k-means on `x [N, D]`."""
        size = self.embed.shape[0]
        self.embed.copy_(x[torch.randint(len(x), (size,), generator=generator).to(x.device)])
        for _ in range(iterations):
            total, count = self._assigned(x, self.fast_nearest(x))
            used = count > 0
            self.embed[used] = total[used] / count[used, None]
        self.usage.fill_(len(x) / size)
        self.embed_sum.copy_(self.embed * self.usage[:, None])

    @torch.no_grad()
    def go_on(self) -> None:
        """Moving averages that give the entries of now: they are not stored with a codec that is to learn further."""
        self.usage.fill_(1.0)
        self.embed_sum.copy_(self.embed)

    @torch.no_grad()
    def learn(self, x: Tensor, codes: Tensor, decay: float, revive_below: float, generator: torch.Generator) -> None:
        """One moving-average update from `x [N, D]` and its `codes [N]`; then revive entries used less than
        `revive_below` times the mean. Revival resets the entry's sum and usage too, or the next update would undo it.
        """
        total, count = self._assigned(x, codes)
        self.embed_sum.lerp_(total, 1 - decay)
        self.usage.lerp_(count, 1 - decay)
        dead = self.usage < revive_below * self.usage.mean()
        fresh = x[torch.randint(len(x), (len(dead),), generator=generator).to(x.device)]
        mean = self.usage.mean()
        self.usage.copy_(torch.where(dead, mean, self.usage))
        self.embed_sum.copy_(torch.where(dead[:, None], fresh * mean, self.embed_sum))
        self.embed.copy_(self.embed_sum / self.usage[:, None].clamp(min=1e-5))

    def fast_nearest(self, x: Tensor) -> Tensor:
        """`nearest` by matrix product: quicker, and near enough while training (`x [N, D]`)."""
        return self._closeness(x).argmax(-1)

    def _closeness(self, x: Tensor) -> Tensor:
        """x·e − ‖e‖² / 2 for every entry e, `[N, size]`: half the squared distance, less ‖x‖² / 2, with its sign
        turned.
        """
        if self.packed is not None and self.packed.takes(x):
            return self.packed(x)
        entries = self.embed.to(x.dtype)
        return x @ entries.T - entries.square().sum(-1) / 2

    def _assigned(self, x: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.zeros_like(self.embed).index_add_(0, codes, x)
        count = torch.bincount(codes, minlength=len(self.embed)).to(x.dtype)
        return total, count
