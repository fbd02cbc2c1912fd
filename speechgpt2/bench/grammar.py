"""What constrained decoding costs: the compilation of a grammar, and the work of a step.

    sg2 bench grammar --schemas 200

Each schema is that of a required tool call, whose tokens are drawn at random among the allowed ones.
"""

from __future__ import annotations

import random
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from speechgpt2.bench.machine import open_console
from speechgpt2.bench.random_schemas import random_tool
from speechgpt2.eval import report
from speechgpt2.eval.report import column
from speechgpt2.lm.grammar import Grammars
from speechgpt2.lm.model import SpeechLM
from speechgpt2.lm.sampling import unpack_bits
from speechgpt2.lm.tools import parse_tool_calls
from speechgpt2.types import Tool, ToolCall

MAX_TOKENS = 2_000


@dataclass(frozen=True)
class GrammarCost:
    """Times of some random schemas."""

    vocabulary: int = column("vocabulary", ",d")
    schemas: int = column("schemas", ",d")
    compile_ms: float = column("compile ms, median", ".2f")
    compile_p95_ms: float = column("95 %", ".2f")
    mask_us: float = column("mask µs a token, median", ".0f")
    mask_p95_us: float = column("95 %", ".0f")
    accept_us: float = column("accept µs", ".0f")
    apply_us: float = column("apply to 8 rows µs", ".0f")
    tokens: int = column("tokens", ",d")
    invalid: int = column("invalid calls", "d")


@dataclass
class Timings:
    """Seconds of every compilation, mask and accepted token."""

    compile: list[float]
    mask: list[float]
    accept: list[float]


def main(model: str, schemas: int, seed: int = 0, out: Path | None = None) -> None:
    """Print what grammars cost with the tokenizer of `model`."""
    console, generator = open_console(), random.Random(seed)
    lm = SpeechLM.from_pretrained(model)
    grammars, times, invalid = lm.prompt.grammars, Timings([], [], []), 0
    for number in range(schemas):
        tool = random_tool(number, generator)
        tokens = draw_call(grammars, tool, generator, times)
        invalid += not is_call(lm.prompt.tokenizer.decode(tokens), tool.name)
    result = GrammarCost(
        grammars.vocab,
        schemas,
        statistics.median(times.compile) * 1e3,
        float(np.percentile(times.compile, 95)) * 1e3,
        statistics.median(times.mask) * 1e6,
        float(np.percentile(times.mask, 95)) * 1e6,
        statistics.median(times.accept) * 1e6,
        time_of_masking(grammars.vocab) * 1e6,
        len(times.mask),
        invalid,
    )
    report.publish({"Constrained decoding": [result]}, console, out)


def draw_call(grammars: Grammars, tool: Tool, generator: random.Random, times: Timings) -> list[int]:
    """Draw the tokens of a call at random among the allowed ones."""
    start = time.perf_counter()
    constraint = grammars.constraint([tool], required=True)
    times.compile.append(time.perf_counter() - start)
    assert constraint is not None
    tokens: list[int] = []
    while len(tokens) < MAX_TOKENS:
        start = time.perf_counter()
        allowed = constraint.allowed()
        times.mask.append(time.perf_counter() - start)
        assert allowed is not None
        bits = np.flatnonzero(np.unpackbits(allowed.view(np.uint8), bitorder="little"))
        token = int(generator.choice(bits))
        if token == grammars.prompt.special_ids.eos:
            break
        start = time.perf_counter()
        constraint.accept(token)
        times.accept.append(time.perf_counter() - start)
        tokens.append(token)
    return tokens


def is_call(text: str, name: str) -> bool:
    """Whether a text is calls of the tool `name`, and nothing else."""
    calls = [part for part in parse_tool_calls(text) if isinstance(part, ToolCall)]
    return bool(calls) and all(call.name == name for call in calls)


def time_of_masking(vocab: int, rows: int = 8, repetitions: int = 50) -> float:
    """Seconds that it takes to apply the masks of `rows` rows to their logits."""
    logits, words = torch.randn(rows, vocab), torch.full((rows, -(-vocab // 32)), 5, dtype=torch.int32)
    seconds = []
    for _ in range(repetitions):
        start = time.perf_counter()
        logits.masked_fill(~unpack_bits(words, vocab), -torch.inf)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
