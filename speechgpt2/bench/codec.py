"""Benchmark of the streaming codec: encoder and decoder, in chunks of one patch (3 frames, 120 ms), in steady state.

    sg2 bench codec --size released

The weights are random, since the time does not depend on them. The encoder stays in float32, since rounding it would
change codes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from speechgpt2.bench.machine import (
    DTYPES,
    Machine,
    PartSpeed,
    count_flops,
    measure,
    open_console,
    percentiles,
    synchronize,
    weight_bytes,
)
from speechgpt2.errors import UserError
from speechgpt2.eval import report
from speechgpt2.eval.report import column
from speechgpt2.types import FRAME_RATE, PATCH_FRAMES, PATCH_SAMPLES, PATCH_SECONDS

CHUNK_MS = 1000 * PATCH_SECONDS


@dataclass(frozen=True)
class CodecSpeed(PartSpeed):
    """Speed of the encoder or the decoder, per chunk of 120 ms.

    Attributes:
        floor_ms: Lower bound of the time on this machine.
        over_floor: Median time ÷ lower bound.
    """

    floor_ms: float = column("floor ms", ".1f")
    over_floor: float = column("× floor", ".2f")
    gflop: float = column("GFLOP", ".2f")
    megabytes: float = column("MB of weights", ".0f")


def bench(codec: Any, size: str, dtype: str, machine: Machine, chunks: int) -> list[CodecSpeed]:
    """Time a codec after its context windows are filled.

    Args:
        codec: The codec; its weights get packed, as for inference.
        size: Its name in the table.
        dtype: The decoder's type.
        machine: The measured machine.
        chunks: Number of chunks to time.
    """
    generator = torch.Generator().manual_seed(0)
    context = _context_chunks(codec)
    pcm = 0.1 * torch.randn(1, (context + 4 + chunks) * PATCH_SAMPLES, generator=generator)
    pcm = pcm.to(machine.device)
    encode_state, decode_state = codec.init_encoder_state(1, in_place=True), codec.init_decoder_state(1, in_place=True)
    codes, encode_state = codec.encode(pcm[:, : context * PATCH_SAMPLES], encode_state)
    _, decode_state = codec.decode(codes, decode_state)
    chunk = pcm[:, :PATCH_SAMPLES]
    flops = (
        count_flops(lambda: codec.encode(chunk, encode_state)),
        count_flops(lambda: codec.decode(codes[:, :PATCH_FRAMES], decode_state)),
    )
    codec.optimize_for_inference()  # after counting, which does not see packed matrices
    spent: tuple[list[float], list[float]] = ([], [])
    for piece in pcm[:, context * PATCH_SAMPLES :].split(PATCH_SAMPLES, dim=1):
        start = time.perf_counter()
        codes, encode_state = codec.encode(piece, encode_state)
        synchronize(machine.device)
        between = time.perf_counter()
        _, decode_state = codec.decode(codes, decode_state)
        synchronize(machine.device)
        spent[0].append(between - start)
        spent[1].append(time.perf_counter() - between)
    parts = (("encode", "float32", codec.encoder), ("decode", dtype, codec.decoder))
    return [
        _row(size, part, kind, weight_bytes(module), flops[i], spent[i][4:], machine)
        for i, (part, kind, module) in enumerate(parts)
    ]


def _row(
    size: str, part: str, dtype: str, weights: int, flops: float, seconds: list[float], machine: Machine
) -> CodecSpeed:
    median, high = percentiles(seconds)
    floor = 1000 * machine.floor(flops, weights, dtype)
    return CodecSpeed(
        size, part, dtype, median, high, median / CHUNK_MS, floor, median / floor, flops / 1e9, weights / 1e6
    )


def _context_chunks(codec: Any) -> int:
    """Return the chunks that fill the longest attention window (25 steps per second at the codebooks, else 100)."""
    config = codec.config
    slow = config.vq_transformer.context / FRAME_RATE
    fast = max(config.encoder_transformer.context, config.decoder_transformer.context) / (4 * FRAME_RATE)
    return int(max(slow, fast) * FRAME_RATE / PATCH_FRAMES) + 1


def main(
    size: str = "released",
    dtypes: tuple[str, ...] = ("float32", "bfloat16"),
    threads: int = 2,
    chunks: int = 50,
    out: str | Path | None = None,
    device: str = "cpu",
) -> list[CodecSpeed]:
    """Time a codec with random weights; print the table and return its rows.

    Args:
        size: "released" or "mini".
        dtypes: Types of the decoder. bfloat16 is skipped where the processor does not support it.
        threads: Threads of torch.
        chunks: Number of chunks to time.
        out: A JSON file for the results.
        device: Where the codec computes.

    Raises:
        UserError: An argument is invalid.
    """
    from speechgpt2.codec.config import PRESETS
    from speechgpt2.codec.model import Codec

    if size not in PRESETS or not set(dtypes) <= set(DTYPES):
        raise UserError(f"size must be one of {', '.join(PRESETS)}, dtypes of {', '.join(DTYPES)}")
    console = open_console()
    machine = measure(threads, device=device)
    machine.report(console)
    rows: list[CodecSpeed] = []
    for dtype in dtypes:
        if dtype == "bfloat16" and not machine.has_bf16 and len(dtypes) > 1:
            continue
        codec = Codec(PRESETS[size]()).eval().to(device)
        codec.decoder.to(DTYPES[dtype])
        rows += bench(codec, size, dtype, machine, chunks)
    report.publish({f"Codec, chunks of {CHUNK_MS:.0f} ms, streaming": rows}, console, out, measured=machine)
    return rows
