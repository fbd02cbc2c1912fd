"""A small network that hears phones in a waveform, so that codec training can ask whether speech is still understood.

A spectral distance weighs a vowel's every partial, but hardly the burst by which "three" differs from "tree". The
listener learns from the original what is being said, and the decoder learns to make it hear the same in the copy: a
distance in the activations of a network that knows the task (Germain et al., 2018) and in its answers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from speechgpt2.codec.mel import log_mel, slaney_filters
from speechgpt2.types import FRAME_SIZE, SAMPLE_RATE

WINDOW, HOP, BINS = 512, 240, 80
STEPS = FRAME_SIZE // HOP  # of the spectrum in a frame
MEAN, DEVIATION = -3.0, 2.0  # of the spectrum's logarithm, about


class Listener(nn.Module):
    """`pcm [B, N] -> logits [B, ⌊N / 960⌋, phones]` and the activations `[B, ⌊N / 960⌋, width]` of every layer.

    It hears both past and future, for it is never used in a stream.
    """

    filters: Tensor
    window: Tensor

    def __init__(self, phones: int, width: int = 256, layers: int = 4, kernel: int = 5):
        super().__init__()
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        self.register_buffer("filters", torch.from_numpy(slaney_filters(WINDOW, BINS, SAMPLE_RATE)), persistent=False)
        self.take = nn.Linear(STEPS * BINS, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.convs = nn.ModuleList(nn.Conv1d(width, width, kernel, padding=kernel // 2) for _ in range(layers))
        self.tell = nn.Linear(width, phones)

    def forward(self, pcm: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = self.take(self._spectrum(pcm))
        activations = []
        for norm, conv in zip(self.norms, self.convs):
            heard = F.gelu(conv(norm(x).transpose(1, 2)).transpose(1, 2))
            activations.append(heard)
            x = x + heard
        return self.tell(x), activations

    def distance(self, ours: Tensor, heard: tuple[Tensor, list[Tensor]]) -> Tensor:
        """How differently `ours [B, N]` is heard from another sound, of which that was `heard`: the divergence of
        the answers, and the mean difference of the activations relative to its own. Only `ours` gets a gradient.
        """
        wanted, theirs = heard[0].detach(), [activation.detach() for activation in heard[1]]
        fixed = {name: value.detach() for name, value in (*self.named_parameters(), *self.named_buffers())}
        logits, activations = functional_call(self, fixed, (ours,))
        surprise = F.kl_div(logits.log_softmax(-1), wanted.log_softmax(-1), reduction="none", log_target=True)
        apart = [F.l1_loss(a, b) / b.abs().mean().clamp(min=1e-3) for a, b in zip(activations, theirs)]
        return surprise.sum(-1).mean() + torch.stack(apart).mean()

    def _spectrum(self, pcm: Tensor) -> Tensor:
        """Log-mel steps around each 10 ms, those of a frame side by side: `[B, ⌊N / 960⌋, 4 · 80]`."""
        frames = pcm.shape[1] // FRAME_SIZE
        around = F.pad(pcm, ((WINDOW - HOP) // 2,) * 2)
        spectrum = log_mel(around, HOP, self.window, self.filters)[:, : STEPS * frames]
        return ((spectrum - MEAN) / DEVIATION).unflatten(1, (frames, STEPS)).flatten(2)
