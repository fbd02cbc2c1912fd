"""The listener: a small phone classifier, whose activations and outputs give codec training a perceptual loss.

A spectral distance weighs every partial of a vowel, but hardly the burst that tells "three" from "tree". The listener
learns to classify the phones of the original. The decoder learns to give the same activations and outputs for the copy:
a deep feature loss (Germain et al., 2018, https://arxiv.org/abs/1806.10522).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from speechgpt2.codec.mel import log_mel, slaney_filters
from speechgpt2.training import distributed
from speechgpt2.types import FRAME_SIZE, SAMPLE_RATE

WINDOW, HOP, BINS = 512, 240, 80
STEPS = FRAME_SIZE // HOP  # spectral steps in a frame
MEAN, DEVIATION = -3.0, 2.0  # rough statistics of the log spectrum


class Listener(nn.Module):
    """`pcm [B, N]` -> phone logits `[B, ⌊N / 960⌋, phones]` and the activations `[B, ⌊N / 960⌋, width]` of all layers.

    It is not causal, because it is used in training only.
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
        """Classify the phone of every frame."""
        x = self.take(self._spectrum(pcm))
        activations = []
        for norm, conv in zip(self.norms, self.convs):
            activation = F.gelu(conv(norm(x).transpose(1, 2)).transpose(1, 2))
            activations.append(activation)
            x = x + activation
        return self.tell(x), activations

    def distance(self, pcm: Tensor, reference: tuple[Tensor, list[Tensor]]) -> Tensor:
        """Return the divergence of the outputs plus the mean relative distance of the activations.

        Args:
            pcm: Audio `[B, N]`; only it gets a gradient.
            reference: The output of `forward` for the original.
        """
        targets, target_activations = reference[0].detach(), [activation.detach() for activation in reference[1]]
        fixed = {name: value.detach() for name, value in (*self.named_parameters(), *self.named_buffers())}
        logits, activations = functional_call(self, fixed, (pcm,))
        divergence = F.kl_div(logits.log_softmax(-1), targets.log_softmax(-1), reduction="none", log_target=True)
        scales = distributed.average(torch.stack([b.abs().mean() for b in target_activations])).clamp(min=1e-3)
        distances = torch.stack([F.l1_loss(a, b) for a, b in zip(activations, target_activations)]) / scales
        return divergence.sum(-1).mean() + distances.mean()

    def _spectrum(self, pcm: Tensor) -> Tensor:
        """Return the four log-mel steps of each frame side by side: `[B, ⌊N / 960⌋, 4 · 80]`."""
        frames = pcm.shape[1] // FRAME_SIZE
        around = F.pad(pcm, ((WINDOW - HOP) // 2,) * 2)
        spectrum = log_mel(around, HOP, self.window, self.filters)[:, : STEPS * frames]
        return ((spectrum - MEAN) / DEVIATION).unflatten(1, (frames, STEPS)).flatten(2)
