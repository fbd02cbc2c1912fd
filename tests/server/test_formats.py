"""G.711 against the standard library's tables, and the streams around it."""

import importlib
import sys
import warnings

import numpy as np
import pytest

from speechgpt2 import audio
from speechgpt2.errors import UserError
from speechgpt2.server.formats import LAWS, Decoder, Encoder
from speechgpt2.types import SAMPLE_RATE
from tests import needs

EVERY_SAMPLE = np.arange(-32_768, 32_768)


@needs.condition(sys.version_info < (3, 13), "Python 3.13 has no audioop")
@pytest.mark.parametrize(
    ("name", "decode", "encode"), [("audio/pcmu", "ulaw2lin", "lin2ulaw"), ("audio/pcma", "alaw2lin", "lin2alaw")]
)
def test_the_laws_are_the_standard_library_s(name, decode, encode):
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
def test_a_level_is_the_nearest_within_its_interval_and_odd(name):
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
def test_a_stream_survives_the_way_there_and_back(name):
    encoder, decoder, pcm = Encoder(name), Decoder(name), tone()
    chunks = [encoder.push(pcm[i : i + 700]) for i in range(0, len(pcm), 700)]
    back = np.concatenate([decoder.push(chunk) for chunk in chunks])
    assert abs(len(back) - len(pcm)) < 3
    delay = 0 if name == "audio/pcm" else 96  # two filters of 97 taps
    heard, said = back[2400:9600], pcm[2400 - delay : 9600 - delay]
    error = np.sqrt(np.mean((heard - said) ** 2)) / np.sqrt(np.mean(said**2))
    assert error < (0.001 if name == "audio/pcm" else 0.03)


@pytest.mark.parametrize("name", ["audio/pcmu", "audio/pcma"])
def test_chunks_of_any_size_give_the_same(name):
    sizes, pcm, start = iter([1, 2, 3, 500, 7, 1000, 4000] * 10), tone(), 0
    encoder, decoder, coded, back = Encoder(name), Decoder(name), b"", []
    while start < len(pcm):
        size = next(sizes)
        data = encoder.push(pcm[start : start + size])
        coded, start = coded + data, start + size
        back.append(decoder.push(data))
    assert coded == Encoder(name).push(pcm)
    assert np.allclose(np.concatenate(back), Decoder(name).push(coded), atol=1e-6)


def test_half_a_sample_is_refused():
    with pytest.raises(UserError, match="even number of bytes"):
        Decoder("audio/pcm").push(b"abc")
    assert np.array_equal(Decoder("audio/pcm").push(audio.to_pcm16(tone())), audio.from_pcm16(audio.to_pcm16(tone())))
