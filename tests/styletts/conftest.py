import pytest
import torch

from speechgpt2.styletts.decoder import DecoderConfig
from speechgpt2.styletts.model import StyleTTS, StyleTTSConfig
from speechgpt2.styletts.prosody import AlbertConfig

SMALL = StyleTTSConfig(
    AlbertConfig(symbols=30, positions=40, embedding=8, hidden=16, intermediate=24, heads=2, layers=2),
    DecoderConfig(size=32, skip=4, channels=(16, 8)),
    style=8,
)


@pytest.fixture
def small() -> StyleTTS:
    """A random model with the structure of Kokoro: symbols of different lengths, spectra of moderate size."""
    torch.manual_seed(0)
    model = StyleTTS(SMALL).requires_grad_(False)
    model.predictor.duration_proj.weight.mul_(30)
    model.decoder.generator.conv_post.weight.mul_(0.05)
    return model
