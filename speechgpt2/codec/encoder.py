"""The encoder, from samples to the latent: mel, ConvNeXt and transformer at 100 Hz, two downsamplers to 25 Hz."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from speechgpt2.codec.config import CodecConfig
from speechgpt2.codec.mel import Mel
from speechgpt2.nn.conv import Downsample, EdgeTail
from speechgpt2.nn.convnext import ConvNeXt
from speechgpt2.nn.transformer import AnyState, Transformer
from speechgpt2.types import PATCH_FRAMES


class EncoderState(NamedTuple):
    """State of the encoder's parts."""

    mel: EdgeTail
    convnext: tuple[Tensor, ...]
    transformer: AnyState
    down: tuple[EdgeTail, ...]


class Encoder(nn.Module):
    """`pcm [B, N]` -> latent `[B, ⌈⌈⌊N/240⌋/2⌉/2⌉, D]`. A chunk off the 960-sample grid ends the stream."""

    def __init__(self, config: CodecConfig):
        super().__init__()
        self.mel = Mel(config.mel)
        self.convnext = ConvNeXt(config.mel.bins, config.encoder_convnext)
        self.transformer = Transformer(config.encoder_transformer)
        self.down = nn.ModuleList(Downsample(config.latent) for _ in range(2))
        self.normalized = config.normalized_latent

    def init_state(self, batch: int, in_place: bool = False) -> EncoderState:
        """Return the state of `batch` rows before any input; see `Codec.init_encoder_state`."""
        transformer = self.transformer
        return EncoderState(
            self.mel.init_state(batch),
            self.convnext.init_state(batch),
            transformer.init_ring(batch, 4 * PATCH_FRAMES) if in_place else transformer.init_state(batch),
            tuple(down.init_state(batch) for down in self.down),  # type: ignore[operator]
        )

    def forward(
        self, pcm: Tensor, state: EncoderState | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, EncoderState]:
        """Encode one chunk. `lengths [B]` are the valid samples of each row of a padded batch."""
        x, mel = self.mel(pcm, state and state.mel)
        x, convnext = self.convnext(x, state and state.convnext)
        x, transformer = self.transformer(x, state and state.transformer)
        steps = None if lengths is None else lengths // self.mel.config.hop
        x, down = x.transpose(1, 2), []
        for i, layer in enumerate(self.down):
            x, tail = layer(x, state and state.down[i], steps)
            steps = None if steps is None else -(-steps // 2)
            down.append(tail)
        x = x.transpose(1, 2)
        if self.normalized:
            x = F.layer_norm(x, x.shape[-1:])
        return x, EncoderState(mel, convnext, transformer, tuple(down))
