"""Residual vector quantization: each codebook quantizes the residual of the previous ones.

Source: Zeghidour et al., SoundStream, 2021 (https://arxiv.org/abs/2107.03312). Codebooks start from k-means and follow
exponential moving averages of the vectors assigned to them (van den Oord et al., 2017,
https://arxiv.org/abs/1711.00937). Entries that are no longer used restart at vectors of the batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechgpt2.codec.config import QuantizerConfig
from speechgpt2.nn.linear import Kernel, packed
from speechgpt2.nn.precision import widest_float

CANDIDATES = 4  # nearest entries that are compared in float64, where the device has it


class ResidualQuantizer(nn.Module):
    """Latent `[B, T, D]` to codes `[B, T, K]` and back."""

    def __init__(self, config: QuantizerConfig, dim: int):
        super().__init__()
        self.config = config
        self.codebooks = nn.ModuleList(Codebook(config.size, dim) for _ in range(config.codebooks))

    def restart_averages(self) -> None:
        """Set the moving averages of all codebooks to the present entries (`Codebook.restart_averages`)."""
        for codebook in self.codebooks:
            codebook.restart_averages()  # type: ignore[operator]

    def encode(self, latent: Tensor) -> Tensor:
        """Return the codes `[B, T, K]` of a latent `[B, T, D]`."""
        residual, codes = latent, []
        for codebook in self.codebooks:
            codes.append(codebook.nearest(residual))  # type: ignore[operator]
            residual = residual - codebook.lookup(codes[-1])  # type: ignore[operator]
        return torch.stack(codes, dim=-1)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the sum of the vectors `[B, T, D]` of `codes [B, T, K]`."""
        vectors = [book.lookup(code) for book, code in zip(self.codebooks, codes.unbind(-1))]  # type: ignore[operator]
        return torch.stack(vectors).sum(0)


class Codebook(nn.Module):
    """A table of `size` vectors `embed = embed_sum / usage`, which are moving averages in training."""

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
        """Pack the table (`nn.linear.pack`) for inference."""
        self.packed = self.packed or packed(self.embed, -self.embed.square().sum(-1) / 2, rows, half)

    def lookup(self, codes: Tensor) -> Tensor:
        """Return the vectors `[..., D]` of `codes [...]`."""
        return F.embedding(codes, self.embed)

    def nearest(self, x: Tensor) -> Tensor:
        """Return the nearest entry by Euclidean distance, `[..., D] -> [...]`.

        A product in float32 finds a few candidates, which are compared in float64. Latents share a large offset, so
        with float32 alone codes would depend on how a stream is cut into chunks.
        """
        flat = x.reshape(-1, x.shape[-1]).float()
        likely = self._similarity(flat).topk(min(CANDIDATES, len(self.embed))).indices.sort(-1).values
        wide = widest_float(flat.device)
        distance = (flat[:, None].to(wide) - self.embed[likely].to(wide)).square().sum(-1)
        return likely.gather(-1, distance.argmin(-1, keepdim=True)).view(x.shape[:-1])

    @torch.no_grad()
    def kmeans_init(self, x: Tensor, generator: torch.Generator, iterations: int = 10) -> None:
        """Initialise the table by k-means on `x [N, D]`."""
        size = self.embed.shape[0]
        self.embed.copy_(x[torch.randint(len(x), (size,), generator=generator).to(x.device)])
        for _ in range(iterations):
            total, count = self._assigned(x, self.fast_nearest(x))
            used = count > 0
            self.embed[used] = total[used] / count[used, None]
        self.usage.fill_(len(x) / size)
        self.embed_sum.copy_(self.embed * self.usage[:, None])

    @torch.no_grad()
    def restart_averages(self) -> None:
        """Set the moving averages, which a saved codec does not hold, to the present entries."""
        self.usage.fill_(1.0)
        self.embed_sum.copy_(self.embed)

    @torch.no_grad()
    def update(self, x: Tensor, codes: Tensor, decay: float, revive_below: float, generator: torch.Generator) -> None:
        """Update the moving averages and restart unused entries.

        Args:
            x: Vectors, `[N, D]`.
            codes: Their entries, `[N]`.
            decay: Decay of the averages.
            revive_below: Entries used less than this share of the mean restart at a random vector of `x`. That sets
                their sum and usage too; otherwise the next update would undo it.
            generator: Source of randomness.
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
        """Return the nearest entries of `x [N, D]` in float32, which is faster and sufficient in training."""
        return self._similarity(x).argmax(-1)

    def _similarity(self, x: Tensor) -> Tensor:
        """Return x·e − ‖e‖² / 2 for every entry e, `[N, size]`, which is greatest for the nearest entry."""
        if self.packed is not None and self.packed.takes(x):
            return self.packed(x)
        entries = self.embed.to(x.dtype)
        return x @ entries.T - entries.square().sum(-1) / 2

    def _assigned(self, x: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.zeros_like(self.embed).index_add_(0, codes, x)
        count = torch.bincount(codes, minlength=len(self.embed)).to(x.dtype)
        return total, count
