"""The network against plain formulas, and against ALBERT of `transformers`."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from speechgpt2.styletts.decoder import DecoderConfig, Generator, HarmonicSource
from speechgpt2.styletts.layers import AdaptiveNorm, Conv, ResidualBlock, Snake, Upsample, leaky_relu
from speechgpt2.styletts.model import StyleTTS, StyleTTSConfig, Synthesis
from speechgpt2.styletts.prosody import Albert, AlbertConfig
from speechgpt2.styletts.weights import our_name
from tests import needs

CPU = torch.device("cpu")
SYMBOLS = torch.tensor([0, 5, 17, 3, 29, 0])


def speak(model: StyleTTS, speed: float = 1.0) -> Synthesis:
    return model(SYMBOLS, torch.linspace(-1, 1, 2 * model.config.style), speed)


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def test_speech_lasts_as_long_as_its_durations(small):
    speech = speak(small.prepare(CPU, torch.float32))
    assert speech.durations.shape == SYMBOLS.shape and speech.durations.min() >= 1
    assert small.frame == 600 and speech.samples.shape == (600 * int(speech.durations.sum()),)
    assert speech.samples.std() > 0 and speech.samples.isfinite().all()


def test_equal_arguments_give_equal_samples(small):
    small.prepare(CPU, torch.float32)
    assert torch.equal(speak(small).samples, speak(small).samples)


def test_speed_divides_durations(small):
    small.prepare(CPU, torch.float32)
    normal, fast = speak(small).durations, speak(small, speed=1.6).durations
    assert ((normal / 1.6 - fast).abs() <= 1).all() and fast.sum() < normal.sum()


def test_bfloat16_changes_sound_little_and_durations_not(small):
    exact = speak(copy.deepcopy(small).prepare(CPU, torch.float32))
    rough = speak(small.prepare(CPU, torch.bfloat16))
    assert torch.equal(exact.durations, rough.durations) and rough.samples.dtype == torch.float32
    assert correlation(exact.samples, rough.samples) > 0.99


def test_convolutions_over_rows_equal_those_over_channels():
    torch.manual_seed(0)
    x = torch.randn(20, 4)
    conv = Conv(4, 6, 5, dilation=2)
    assert torch.allclose(conv(x), F.conv1d(x.T[None], conv.weight[:, :, 0], conv.bias, 1, 4, 2)[0].T, atol=1e-6)
    up = Upsample(4, 6, 20, 10)
    wanted = F.conv_transpose1d(x.T[None], up.weight[:, :, 0], up.bias, 10, 5)[0].T
    assert up(x).shape == (200, 6) and torch.allclose(up(x), wanted, atol=1e-6)
    assert Upsample(4, 4, 3, 2, groups=4)(x).shape == (40, 4) and Conv(4, 6, 3, 2)(x).shape == (10, 6)


@pytest.mark.parametrize("length", [3, 40_000])  # less than a block, and several
def test_adaptive_norm_is_an_instance_norm_under_a_style(length):
    torch.manual_seed(0)
    norm, snake, x, style = AdaptiveNorm(8, 4), Snake(4), torch.randn(length, 4) * 3 + 5, torch.randn(8)
    torch.nn.init.uniform_(snake.alpha, 0.5, 2)
    gain, bias = norm.fc(style).chunk(2)
    normal = F.instance_norm(x.T[None].double())[0].T * (1 + gain) + bias
    with torch.no_grad():
        found = norm(x, style, snake, torch.float32)
        assert torch.allclose(found.double(), normal + (snake.alpha * normal).sin() ** 2 / snake.alpha, atol=1e-3)
        assert norm(x, style, leaky_relu, torch.bfloat16).dtype == torch.bfloat16


def test_residual_block_doubles_the_rate_of_both_branches():
    x, style = torch.randn(7, 4), torch.randn(8)
    with torch.no_grad():
        block = ResidualBlock(4, 6, 8, upsample=True)
        assert block(x, style).shape == (14, 6)
        torch.nn.init.zeros_(block.conv2.weight), torch.nn.init.zeros_(block.conv2.bias)
        assert torch.allclose(block(x, style), block.conv1x1(x.repeat_interleave(2, 0)) / math.sqrt(2))


def test_source_has_the_harmonics_of_the_pitch_and_stays_in_phase():
    config = DecoderConfig(harmonics=2)
    source, seconds = HarmonicSource(config), 120
    torch.nn.init.ones_(source.linear.weight), torch.nn.init.zeros_(source.linear.bias)
    values = seconds * config.sample_rate // config.contour_step
    with torch.no_grad():
        samples = source(torch.full((values,), 101.0))
        silent = source(torch.full((values,), 5.0))
    assert len(samples) == seconds * config.sample_rate and not silent.any()
    time = (torch.arange(len(samples)).double() + (config.contour_step + 1) / 2) / config.sample_rate
    wanted = sum(0.1 * (2 * math.pi * 101 * number * time).sin() for number in (1, 2)).tanh()
    end = slice(-24_000, -config.contour_step)
    assert torch.allclose(samples[end].double(), wanted[end], atol=1e-3)


def test_spectra_give_back_their_samples():
    torch.manual_seed(0)
    generator, samples = Generator(DecoderConfig(size=8, channels=(4, 4)), 8), torch.randn(300)
    spectrum = generator._spectrum(samples)
    again = generator._samples(spectrum[:, : generator.bins], spectrum[:, generator.bins :])
    assert torch.allclose(again, 1.5 * samples, atol=1e-4)


def test_empty_bin_has_phase_zero():
    generator = Generator(DecoderConfig(size=8, channels=(4, 4)), 8)
    assert not generator._spectrum(torch.zeros(100)).any()


def test_albert_equals_that_of_transformers():
    transformers = needs.module("transformers", "dev")
    torch.manual_seed(0)
    ours = AlbertConfig(symbols=30, positions=40, embedding=8, hidden=16, intermediate=24, heads=2, layers=3)
    theirs = transformers.AlbertModel(
        transformers.AlbertConfig(
            vocab_size=30, embedding_size=8, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
            intermediate_size=24, max_position_embeddings=40,
        ),
        add_pooling_layer=False,
    ).eval()  # fmt: skip
    albert = Albert(ours)
    albert.load_state_dict(
        {our_name("encoder.bert." + name).removeprefix("albert."): value for name, value in theirs.state_dict().items()}
    )
    with torch.no_grad():
        assert torch.allclose(albert(SYMBOLS), theirs(SYMBOLS[None]).last_hidden_state[0], atol=1e-5)


def test_kokoro_has_82_million_parameters():
    with torch.device("meta"):
        model = StyleTTS(StyleTTSConfig())
    assert sum(parameter.numel() for parameter in model.parameters()) == 81_140_664
