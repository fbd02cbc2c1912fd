"""The patch decoder: from the backbone's hidden state to the G frames of K codes of one patch.

A small causal transformer runs G steps per patch. Its first input is the hidden state, projected to width L. Step t
sees the summed code embeddings of the frames before t, and K heads, tied to the code embeddings, give that frame's
codes. The heads are parallel (as the depth axis of an RQ-Transformer, Lee et al., 2022,
https://arxiv.org/abs/2203.01941, in one step) or chained (`CodeChain`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechgpt2.lm.backbone import DecoderStack
from speechgpt2.lm.config import LMConfig
from speechgpt2.lm.draft_head import advance
from speechgpt2.lm.sampling import Sampler, SamplingParams
from speechgpt2.nn.linear import Kernel, Linear, linear, packed
from speechgpt2.nn.quantized import QuantizedKernel, QuantizedMatrix


class CodeEmbedding(nn.Module):
    """One table per codebook, `[K, V + 1, L]`. The last row means "no speech"; it is neither trained nor predicted."""

    def __init__(self, config: LMConfig):
        super().__init__()
        self.size = config.codebook_size
        self.table = nn.Parameter(torch.empty(config.codebooks, self.size + 1, config.patch_decoder.width))
        self.packed: list[Kernel | None] = [None] * config.codebooks
        self.heads: dict[str, QuantizedMatrix] = {}

    def unquantized(self) -> dict[str, Tensor]:
        """See `nn.quantized.Quantizable`. The tables themselves stay, because inputs read them."""
        tables = {f"heads.{k}": table[: self.size] for k, table in enumerate(self.table)}
        return {name: table for name, table in tables.items() if name not in self.heads}

    def quantized(self) -> dict[str, QuantizedMatrix]:
        """See `nn.quantized.Quantizable`."""
        return dict(self.heads)

    def set_quantized(self, name: str, matrix: QuantizedMatrix) -> None:
        """See `nn.quantized.Quantizable`."""
        self.heads[name] = matrix

    def arrange(self) -> None:
        """See `nn.quantized.Quantizable`."""
        if self.heads:
            self.packed = [QuantizedKernel.from_matrix(self.heads[f"heads.{k}"]) for k in range(len(self.table))]

    def pack(self, rows: int, half: bool) -> None:
        """Pack the tables as heads (`nn.linear.pack`)."""
        self.packed = [
            kernel or packed(table, None, rows, half) for kernel, table in zip(self.packed, self.table, strict=True)
        ]

    def embed(self, codes: Tensor) -> Tensor:
        """Sum the embeddings of `codes [..., K]` -> `[..., L]` (float32); `codes` may hold only the first codebooks."""
        # padding_idx keeps the gradient away from the last row; the forward pass reads it like any other.
        columns, tables = codes.unbind(-1), self.table.unbind(0)
        parts = [F.embedding(c, t, padding_idx=self.size) for c, t in zip(columns, tables, strict=False)]
        return torch.stack(parts).sum(0, dtype=torch.float32)

    def logits(self, hidden: Tensor) -> Tensor:
        """Apply all heads to one state: `[..., L]` -> `[..., K, V]`."""
        return torch.stack([self.logits_of(k, hidden) for k in range(len(self.table))], dim=-2)

    def logits_of(self, codebook: int, hidden: Tensor) -> Tensor:
        """Apply the head of one codebook: `[..., L]` -> `[..., V]`."""
        return linear(hidden, self.table[codebook], packed=self.packed[codebook])[..., : self.size]


class CodeChain(nn.Module):
    """Lets codebook k see codes 0…k−1 of its own frame, with one recurrent cell per k ≥ 1 (`draft_head.advance`).

    The cell's last matrix starts at zero, which is the decoder with parallel heads.
    """

    def __init__(self, config: LMConfig):
        super().__init__()
        width, links = config.patch_decoder.width, config.codebooks - 1
        self.state = nn.ModuleList(Linear(width, width, bias=False) for _ in range(links))
        self.code = nn.ModuleList(Linear(width, width, bias=False) for _ in range(links))
        self.out = nn.ModuleList(Linear(width, width, bias=False) for _ in range(links))

    def forward(self, codebook: int, hidden: Tensor, earlier: Tensor) -> Tensor:
        """Map `hidden` and the embedding of the `earlier` codes, both `[..., L]`, to the input of a head k ≥ 1."""
        link = codebook - 1
        return advance(hidden, earlier, self.state[link], self.code[link], self.out[link])  # type: ignore[arg-type]


class PatchDecoder(nn.Module):
    """Hidden states of the backbone to codes, teacher-forced or sampled."""

    def __init__(self, config: LMConfig):
        super().__init__()
        self.frames, self.codebooks = config.patch_frames, config.codebooks
        self.codes = CodeEmbedding(config)
        self.enter = Linear(config.backbone.width, config.patch_decoder.width, bias=False)
        self.stack = DecoderStack(config.patch_decoder)
        self.chain = CodeChain(config) if config.patch_decoder.chained else None

    def forward(self, hidden: Tensor, codes: Tensor) -> Tensor:
        """Teacher-forced: `hidden [N, D]` and the patch's true `codes [N, G, K]` -> logits `[N, G, K, V]`."""
        earlier = self.codes.embed(codes[:, :-1])
        y, _ = self.stack(torch.cat([self.enter(hidden)[:, None], earlier.to(hidden.dtype)], dim=1))
        if self.chain is None:
            return self.codes.logits(y)
        logits = [self.codes.logits_of(0, y)]
        for k in range(1, self.codebooks):
            logits.append(self.codes.logits_of(k, self.chain(k, y, self.codes.embed(codes[..., :k]))))
        return torch.stack(logits, dim=-2)

    def sample(self, hidden: Tensor, sampling: SamplingParams, position: Tensor) -> Tensor:
        """Sample a patch: `hidden [B, D]` -> codes `[B, G, K]`. The patch's `position [B]` seeds the noise."""
        state = self.stack.init_state(hidden.shape[0], self.frames)
        x, patch = self.enter(hidden), []
        sampler = Sampler(sampling, position, range(1, 1 + self.frames * self.codebooks), self.codes.size)
        for t in range(self.frames):
            y, state = self.stack(x[:, None], state, kv_length=t + 1)
            patch.append(self._sample_frame(t, y[:, 0], sampler))
            x = self.codes.embed(patch[-1]).to(hidden.dtype)
        return torch.stack(patch, dim=1)

    def _sample_frame(self, frame: int, y: Tensor, sampler: Sampler) -> Tensor:
        first = 1 + frame * self.codebooks  # this frame's first draw at the position; draw 0 is the text token's
        if self.chain is None:
            return sampler.sample(self.codes.logits(y), first)
        codes = sampler.sample(self.codes.logits_of(0, y)[:, None], first)
        for k in range(1, self.codebooks):
            logits = self.codes.logits_of(k, self.chain(k, y, self.codes.embed(codes)))
            codes = torch.cat([codes, sampler.sample(logits[:, None], first + k)], dim=1)
        return codes
