"""The whole network: symbols, a style and a speed -> speech and the durations of the symbols."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from speechgpt2.styletts.decoder import DecoderConfig, StyleDecoder
from speechgpt2.styletts.prosody import Albert, AlbertConfig, ProsodyPredictor, TextEncoder


@dataclass(frozen=True)
class StyleTTSConfig:
    """Sizes; by default those of Kokoro-82M.

    Attributes:
        style: Half of a style: the first half is for the decoder, the second for prosody.
    """

    albert: AlbertConfig = field(default_factory=AlbertConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    style: int = 128


class Synthesis(NamedTuple):
    """Samples, float32 `[frame · durations.sum()]`, and frames of each symbol, int64 `[N]`."""

    samples: Tensor
    durations: Tensor


class StyleTTS(nn.Module):
    """Speaks symbols in a style."""

    def __init__(self, config: StyleTTSConfig = StyleTTSConfig()) -> None:
        super().__init__()
        self.config = config
        size = config.decoder.size
        self.albert = Albert(config.albert)
        self.albert_projection = nn.Linear(config.albert.hidden, size)
        self.text_encoder = TextEncoder(config.albert.symbols, size)
        self.predictor = ProsodyPredictor(size, config.style)
        self.decoder = StyleDecoder(config.decoder, config.style)

    @property
    def frame(self) -> int:
        """Samples of a frame, the unit of durations."""
        return 2 * self.config.decoder.contour_step

    def prepare(self, device: torch.device, dtype: torch.dtype) -> StyleTTS:
        """Make the model ready for inference on a device. Only the decoder's convolutions have the type `dtype`."""
        self.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        for module in self.decoder.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                module.to(dtype)
        return self

    @torch.inference_mode()
    def forward(self, symbols: Tensor, style: Tensor, speed: float = 1.0) -> Synthesis:
        """Synthesize speech.

        Args:
            symbols: Ids, int64 `[N]`, at most as many as ALBERT has positions; on any device.
            style: float32 `[2 · config.style]`, on any device.
            speed: Durations are divided by it.
        """
        device = self.albert_projection.weight.device
        symbols, (sound, manner) = symbols.to(device), style.to(device).chunk(2)
        steps = self.predictor.text_encoder(self.albert_projection(self.albert(symbols)), manner)
        durations = self.predictor.durations(steps, speed)
        pitch, energy = self.predictor.contours(steps.repeat_interleave(durations, 0), manner)
        frames = self.text_encoder(symbols).repeat_interleave(durations, 0)
        return Synthesis(self.decoder(frames, pitch, energy, sound), durations)
