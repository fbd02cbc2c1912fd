"""Configuration of the codec: one frozen dataclass per part, and the presets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from speechgpt2.errors import UserError
from speechgpt2.nn.convnext import ConvNeXtConfig
from speechgpt2.nn.transformer import TransformerConfig
from speechgpt2.types import FRAME_SIZE


@dataclass(frozen=True)
class MelConfig:
    """Log-mel features at 100 Hz, `hop` samples apart, from windows of `window` samples that end with the hop.

    The encoder's input is (log-mel − `mean`) / `std`. The released encoder does not normalise.
    """

    bins: int = 128
    window: int = 1024
    hop: int = 240
    mean: float = 0.0
    std: float = 1.0


@dataclass(frozen=True)
class QuantizerConfig:
    """Residual vector quantization with `codebooks` tables of `size` vectors."""

    codebooks: int = 3
    size: int = 1024


@dataclass(frozen=True)
class HiFiGANConfig:
    """The released waveform head: HiFi-GAN with grouped residual blocks (codec/hifigan.py)."""

    kind: Literal["hifigan"] = "hifigan"
    channels: int = 512
    scales: tuple[int, ...] = (5, 4, 4, 3)
    kernel: int = 7
    block_kernel: int = 11
    dilations: tuple[int, ...] = (1, 3, 5)
    groups: int = 3


@dataclass(frozen=True)
class HarmonicConfig:
    """The light waveform head: pulses and noise, shaped by one filter per 10 ms each (codec/harmonic.py).

    `fft` bounds the length of a block plus its impulse response. The filters' gains are predicted at `harmonic_bands`
    and `noise_bands` points on the mel scale. Pitch lies between `f0_min` and `f0_max` Hz.
    """

    kind: Literal["harmonic"] = "harmonic"
    fft: int = 1024
    harmonic_bands: int = 128
    noise_bands: int = 64
    f0_min: float = 50.0
    f0_max: float = 550.0


@dataclass(frozen=True)
class CodecConfig:
    """The whole codec.

    `delay` is how many samples the decoded waveform trails the encoded one, as trained (0 in the released codec). With
    `normalized_latent` latents have zero mean and unit variance across channels, so that they do not drift away from
    the codebooks in joint training.
    """

    mel: MelConfig
    encoder_convnext: ConvNeXtConfig
    encoder_transformer: TransformerConfig
    quantizer: QuantizerConfig
    vq_transformer: TransformerConfig
    decoder_transformer: TransformerConfig
    decoder_convnext: ConvNeXtConfig
    head: HiFiGANConfig | HarmonicConfig
    delay: int = 0
    normalized_latent: bool = False

    def __post_init__(self) -> None:
        if 4 * self.mel.hop != FRAME_SIZE:
            raise UserError(f"mel.hop must be {FRAME_SIZE // 4}: two downsamplers make a frame of {FRAME_SIZE} samples")
        if self.encoder_convnext.dims[-1] != self.encoder_transformer.width:
            raise UserError("encoder_convnext.dims must end with encoder_transformer.width")
        if self.decoder_transformer.width != self.latent:
            raise UserError("decoder_transformer.width must equal encoder_transformer.width, the width of the latent")
        if isinstance(self.head, HiFiGANConfig) and _product(self.head.scales) != self.mel.hop:
            raise UserError(f"head.scales must multiply to {self.mel.hop}, the samples of a 10 ms step")

    @property
    def latent(self) -> int:
        """Width of the quantized vectors."""
        return self.encoder_transformer.width


def _product(values: tuple[int, ...]) -> int:
    result = 1
    for value in values:
        result *= value
    return result


def released() -> CodecConfig:
    """Return the released codec, 237.5 M parameters."""
    transformer = TransformerConfig(width=512, heads=8, layers=8, ffn=2048, context=500)
    return CodecConfig(
        mel=MelConfig(),
        encoder_convnext=ConvNeXtConfig(depths=(3, 3, 9, 3), dims=(128, 256, 384, 512), drop_path=0.2),
        encoder_transformer=transformer,
        quantizer=QuantizerConfig(),
        vq_transformer=TransformerConfig(width=1024, heads=8, layers=8, ffn=4096, context=125),
        decoder_transformer=transformer,
        decoder_convnext=ConvNeXtConfig(depths=(3, 3, 9, 3), dims=(512, 512, 512, 512)),
        head=HiFiGANConfig(),
    )


def mini() -> CodecConfig:
    """Return the small codec of the project. Most of its work is at 25 Hz, where a step is cheap."""
    return CodecConfig(
        mel=MelConfig(bins=80, mean=-7.0, std=3.0),
        encoder_convnext=ConvNeXtConfig(depths=(1, 1, 1, 1), dims=(96, 128, 192, 256)),
        encoder_transformer=TransformerConfig(width=256, heads=4, layers=2, ffn=768, context=100),
        quantizer=QuantizerConfig(),
        vq_transformer=TransformerConfig(width=384, heads=6, layers=4, ffn=1536, context=50),
        decoder_transformer=TransformerConfig(width=256, heads=4, layers=1, ffn=768, context=100),
        decoder_convnext=ConvNeXtConfig(depths=(3,), dims=(256,)),
        head=HarmonicConfig(),
        delay=480,
        normalized_latent=True,
    )


def mini_deep() -> CodecConfig:
    """Return `mini` with more layers, 19 M parameters; `codec.growth` makes one from a trained `mini`."""
    small = mini()
    return replace(
        small,
        encoder_transformer=replace(small.encoder_transformer, layers=3),
        vq_transformer=replace(small.vq_transformer, layers=6),
        decoder_transformer=replace(small.decoder_transformer, layers=2),
        decoder_convnext=replace(small.decoder_convnext, depths=(4,)),
    )


PRESETS = {"released": released, "mini": mini, "mini_deep": mini_deep}
