"""The benchmarks run on tiny models and report what can be."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from speechgpt2.bench import codec as codec_bench
from speechgpt2.bench import lm as lm_bench
from speechgpt2.bench import machine, questions
from speechgpt2.bench import train as train_bench
from speechgpt2.codec.config import mini
from speechgpt2.codec.model import Codec
from speechgpt2.errors import UserError
from speechgpt2.lm.config import BackboneConfig, LMConfig, PatchDecoderConfig
from speechgpt2.types import AudioDelta, ReplyDone
from tests.training.test_stages import STAGE, trainer_of


@pytest.fixture(scope="module")
def measured():
    return machine.measure(torch.get_num_threads(), sizes=(64, 128), megabytes=8, tries=2)


def test_measured_speeds_are_sane(measured):
    assert 1e8 < measured.flops["float32"] < 1e15
    assert 1e8 < measured.bandwidth < 1e13


def test_floor_is_the_larger_of_arithmetic_and_memory():
    known = machine.Machine({"float32": 100e9, "bfloat16": 10e9}, 10e9, 2)
    assert known.floor(flops=200e9, size=1e9) == pytest.approx(2.0)
    assert known.floor(flops=1e9, size=50e9) == pytest.approx(5.0)
    assert known.floor(flops=200e9, size=0, dtype="bfloat16") == pytest.approx(20.0)
    assert not known.has_bf16


def test_flops_are_counted():
    a = torch.ones(32, 64)
    assert machine.count_flops(lambda: a @ a.T) == 2 * 32 * 64 * 32


def test_codec(measured):
    config = mini()
    short = dataclasses.replace(
        config,
        encoder_transformer=dataclasses.replace(config.encoder_transformer, layers=1, context=24),
        vq_transformer=dataclasses.replace(config.vq_transformer, layers=1, context=6),
        decoder_transformer=dataclasses.replace(config.decoder_transformer, context=24),
    )
    encode, decode = codec_bench.bench(Codec(short).eval(), "tiny", "float32", measured, chunks=3)
    assert (encode.part, decode.part) == ("encode", "decode")
    for row in (encode, decode):
        assert 0 < row.median_ms <= row.p95_ms and row.rtf == pytest.approx(row.median_ms / 120)
        assert row.gflop > 0.001 and row.megabytes > 1
        assert row.over_floor == pytest.approx(row.median_ms / row.floor_ms)


def test_lm(monkeypatch):
    monkeypatch.setattr(lm_bench.Memory, "bandwidth", lambda memory: 5e9)
    backbone = BackboneConfig(vocab=32, width=32, layers=2, heads=4, kv_heads=2, ffn=64, tied_embeddings=True)
    config = LMConfig(backbone, PatchDecoderConfig(width=16, layers=1, heads=2, ffn=32))
    written, spoken = lm_bench.bench_steps(lm_bench.with_random_weights(config), "tiny", "float32", steps=3, history=5)
    assert (written.part, spoken.part) == ("written", "spoken")
    assert spoken.megabytes > written.megabytes > 0
    assert math.isnan(written.rtf) and spoken.rtf == pytest.approx(spoken.median_ms / 120)
    assert spoken.share == pytest.approx(spoken.gigabytes_per_second / 5)


def test_training(measured, monkeypatch):
    monkeypatch.setattr(train_bench, "measure", lambda threads, tries, device: measured)
    trainer = trainer_of(replace(STAGE, accumulate=2, freeze=("backbone.*",)))
    row = train_bench.bench("tiny", trainer, 3, measured)
    assert row.positions == 2 * 2 * 96 and row.speed == pytest.approx(row.positions / row.seconds)
    # Two operations a weight forward and two for the gradient of the input; the embedding is no product.
    at_most = 6 * (row.trained + row.frozen) * row.positions / 1e6
    assert 0.2 * at_most < row.tflop < 2 * at_most and row.frozen > 0
    assert row.share == pytest.approx(row.gflops / row.products) and 0 < row.share < 2


def test_unknown_names_are_errors():
    with pytest.raises(UserError, match="released"):
        codec_bench.main("huge")
    with pytest.raises(UserError, match="float32"):
        lm_bench.main(dtypes=("int3",))


def test_questions_are_shipped_or_those_of_a_folder(tmp_path):
    english, mandarin = questions.load()
    assert 24_000 < len(english) < 120_000 and 24_000 < len(mandarin) < 120_000
    with pytest.raises(UserError, match=r"holds no \.wav or \.flac"):
        questions.load(tmp_path)
    with pytest.raises(UserError, match="absent: no such folder"):
        questions.load(tmp_path / "absent")


def test_turns_are_timed_with_shipped_questions():
    class Talker:
        asked: list = []  # noqa: RUF012 (one object)

        def chat(self, turns, mode, stream):
            self.asked.append(turns[0])
            yield AudioDelta(np.zeros(24_000, np.float32))
            yield ReplyDone("stop")

    [row] = lm_bench.bench_turns(Talker(), 3, questions.load())
    assert row.n == 3 and row.mode == "spoken → spoken" and 0 <= row.first_audio <= row.first_audio_p95
    assert len(Talker.asked) == 4  # the first one warms up
