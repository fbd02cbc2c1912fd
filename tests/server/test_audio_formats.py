"""G.711 against the standard library's tables, and streaming."""

import importlib
import sys
import warnings

import numpy as np
import pytest

from speechgpt2 import audio
from speechgpt2.errors import UserError
from speechgpt2.server.audio_formats import LAWS, WireDecoder, WireEncoder
from speechgpt2.types import SAMPLE_RATE
from tests import needs

EVERY_SAMPLE = np.arange(-32_768, 32_768)


@needs.condition(sys.version_info < (3, 13), "Python 3.13 has no audioop")
@pytest.mark.parametrize(
    ("name", "decode", "encode"), [("audio/pcmu", "ulaw2lin", "lin2ulaw"), ("audio/pcma", "alaw2lin", "lin2alaw")]
)
def test_laws_equal_the_standard_library(name, decode, encode):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        audioop = importlib.import_module("audioop")
    law, codes = LAWS[name], bytes(range(256))
    levels = np.frombuffer(getattr(audioop, decode)(codes, 2), "<i2")
    assert np.array_equal(law.decode(codes) * 32_768, levels)
    # audioop rounds towards minus infinity before it looks a sample up, so the signs are compared apart
    positive = EVERY_SAMPLE[EVERY_SAMPLE >= 0]
    theirs = getattr(audioop, encode)(positive.astype("<i2").tobytes(), 2)
    assert law.encode(positive / 32_768) == theirs


@pytest.mark.parametrize("name", ["audio/pcmu", "audio/pcma"])
def test_levels_are_nearest_and_symmetric(name):
    law = LAWS[name]
    back = law.decode(law.encode(EVERY_SAMPLE / 32_768)) * 32_768
    assert np.abs(back - EVERY_SAMPLE).max() <= 1024  # half the widest interval, and the clipping at full scale
    assert np.array_equal(back[1:][::-1][:32_767], -back[1:][:32_767])
    assert law.encode(law.decode(bytes(range(256)))) in (
        bytes(range(256)),
        bytes(range(127)) + b"\xff" + bytes(range(128, 256)),
    )


def tone(seconds=0.5):
    return (0.4 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE)).astype(np.float32)


@pytest.mark.parametrize("name", ["audio/pcm", "audio/pcmu", "audio/pcma"])
def test_round_trip(name):
    encoder, decoder, pcm = WireEncoder(name), WireDecoder(name), tone()
    chunks = [encoder.push(pcm[i : i + 700]) for i in range(0, len(pcm), 700)]
    back = np.concatenate([decoder.push(chunk) for chunk in chunks])
    assert abs(len(back) - len(pcm)) < 3
    delay = 0 if name == "audio/pcm" else 96  # two filters of 97 taps
    decoded, said = back[2400:9600], pcm[2400 - delay : 9600 - delay]
    error = np.sqrt(np.mean((decoded - said) ** 2)) / np.sqrt(np.mean(said**2))
    assert error < (0.001 if name == "audio/pcm" else 0.03)


@pytest.mark.parametrize("name", ["audio/pcmu", "audio/pcma"])
def test_result_is_independent_of_chunking(name):
    sizes, pcm, start = iter([1, 2, 3, 500, 7, 1000, 4000] * 10), tone(), 0
    encoder, decoder, coded, back = WireEncoder(name), WireDecoder(name), b"", []
    while start < len(pcm):
        size = next(sizes)
        data = encoder.push(pcm[start : start + size])
        coded, start = coded + data, start + size
        back.append(decoder.push(data))
    assert coded == WireEncoder(name).push(pcm)
    assert np.allclose(np.concatenate(back), WireDecoder(name).push(coded), atol=1e-6)


def test_half_a_sample_is_an_error():
    with pytest.raises(UserError, match="even number of bytes"):
        WireDecoder("audio/pcm").push(b"abc")
    assert np.array_equal(
        WireDecoder("audio/pcm").push(audio.to_pcm16(tone())), audio.from_pcm16(audio.to_pcm16(tone()))
    )
