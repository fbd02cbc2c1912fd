"""The decoder, from the quantized latent to samples.

A transformer at 25 Hz, two upsamplers to 100 Hz, a transformer and a ConvNeXt there, and a waveform head.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from speechgpt2.codec.config import CodecConfig, HiFiGANConfig
from speechgpt2.codec.harmonic import HarmonicHead
from speechgpt2.codec.hifigan import HiFiGAN
from speechgpt2.nn.conv import CausalConvTranspose1d, EdgeTail
from speechgpt2.nn.convnext import ConvNeXt
from speechgpt2.nn.linear import Linear
from speechgpt2.nn.transformer import AnyState, Transformer
from speechgpt2.types import PATCH_FRAMES


class DecoderState(NamedTuple):
    """State of the decoder's parts."""

    vq_transformer: AnyState
    up: tuple[EdgeTail, ...]
    transformer: AnyState
    convnext: tuple[Tensor, ...]
    head: Any


class Decoder(nn.Module):
    """Quantized latent `[B, T, D]` -> `pcm [B, 960·T]`."""

    def __init__(self, config: CodecConfig):
        super().__init__()
        latent, wide, features = config.latent, config.vq_transformer.width, config.decoder_convnext.dims[-1]
        self.widen = Linear(latent, wide, bias=False)
        self.vq_transformer = Transformer(config.vq_transformer)
        self.narrow = Linear(wide, latent, bias=False)
        self.up = nn.ModuleList(CausalConvTranspose1d(latent, latent, 2, bias=False) for _ in range(2))
        self.transformer = Transformer(config.decoder_transformer)
        self.convnext = ConvNeXt(latent, config.decoder_convnext)
        self.head: HiFiGAN | HarmonicHead
        if isinstance(config.head, HiFiGANConfig):
            self.head = HiFiGAN(features, config.head)
        else:
            self.head = HarmonicHead(features, config.mel.hop, config.head)

    def init_state(self, batch: int, in_place: bool = False) -> DecoderState:
        """Return the state of `batch` rows before any input; see `Codec.init_encoder_state`."""
        slow, fast = self.vq_transformer, self.transformer
        return DecoderState(
            slow.init_ring(batch, PATCH_FRAMES) if in_place else slow.init_state(batch),
            tuple(up.init_state(batch) for up in self.up),  # type: ignore[operator]
            fast.init_ring(batch, 4 * PATCH_FRAMES) if in_place else fast.init_state(batch),
            self.convnext.init_state(batch),
            self.head.init_state(batch),
        )

    def forward(self, x: Tensor, state: DecoderState | None = None) -> tuple[Tensor, DecoderState]:
        """Decode one chunk of the latent."""
        x, (vq_transformer, up, transformer, convnext) = self.features(x, state)
        pcm, head = self.head(x, state and state.head)
        return pcm, DecoderState(vq_transformer, up, transformer, convnext, head)

    def features(self, x: Tensor, state: DecoderState | None = None) -> tuple[Tensor, tuple[Any, ...]]:
        """Run all parts but the head: `[B, T, D]` -> `[B, 4·T, C]` at 100 Hz, and their next states."""
        x, vq_transformer = self.vq_transformer(self.widen(x), state and state.vq_transformer)
        x, ups = self.narrow(x).transpose(1, 2), []
        for i, layer in enumerate(self.up):
            x, tail = layer(x, state and state.up[i])
            ups.append(tail)
        x, transformer = self.transformer(x.transpose(1, 2), state and state.transformer)
        x, convnext = self.convnext(x, state and state.convnext)
        return x, (vq_transformer, tuple(ups), transformer, convnext)
