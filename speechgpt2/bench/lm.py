"""Benchmark of the language model: one streaming step, and whole turns.

    sg2 bench lm                 # the sizes of Qwen2.5-0.5B and the released patch decoder, random weights
    sg2 bench lm --model mini    # a real model: its step, and whole spoken turns

Reading the weights bounds a step of one stream. So the result is the share of the memory's bandwidth that a step
reaches; the bandwidth is measured between the steps. A spoken step reads the backbone and the text head once, and the
patch decoder once per frame.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from speechgpt2.bench.machine import (
    DTYPES,
    Memory,
    PartSpeed,
    measure,
    open_console,
    percentiles,
    synchronize,
    weight_bytes,
)
from speechgpt2.bench.questions import load as load_questions
from speechgpt2.errors import UserError
from speechgpt2.eval import report
from speechgpt2.eval.answers import TimeRow, answer_turn, load_model, time_rows
from speechgpt2.eval.report import column
from speechgpt2.nn.linear import pack
from speechgpt2.nn.quantized import KINDS, Quantization, quantize_model
from speechgpt2.types import FRAME_RATE, Turn

RANDOM = "qwen2.5-0.5b"  # a model with random weights
BANDWIDTH_INTERVAL = 5  # steps between measurements of the bandwidth


@dataclass(frozen=True)
class StepSpeed(PartSpeed):
    """Speed of a step that samples and reads a patch, of text or of speech.

    Attributes:
        share: Bytes ÷ time ÷ measured bandwidth; above 1 if a small model stays in cache.
    """

    megabytes: float = column("MB read", ".0f")
    gigabytes_per_second: float = column("GB/s", ".1f")
    share: float = column("of bandwidth", ".0%")


def bench_steps(lm: Any, name: str, dtype: str, steps: int, history: int = 64) -> list[StepSpeed]:
    """Time steps of text and of speech.

    Args:
        lm: A `SpeechLM`.
        name: What the rows call it.
        dtype: What they call the type of its weights.
        steps: Steps of each kind.
        history: Patches before them.
    """
    filler, start = lm.prompt.special_ids.filler, lm.prompt.special_ids.speech_start
    patch_ms = 1000 * lm.config.patch_frames / FRAME_RATE
    rows = []
    for step, first in (("written", filler), ("spoken", start)):
        seconds, bandwidth = _time_steps(lm, [filler] * history + [first], filler, steps)
        median, high = percentiles(seconds)
        size = bytes_read(lm, spoken=step == "spoken")
        speed = size / (median / 1000)
        rtf = median / patch_ms if step == "spoken" else float("nan")
        rows.append(StepSpeed(name, step, dtype, median, high, rtf, size / 1e6, speed / 1e9, speed / bandwidth))
    return rows


@torch.inference_mode()
def _time_steps(lm: Any, history: list[int], token: int, steps: int) -> tuple[list[float], float]:
    """Time steps: sample a patch, and prefill it.

    Args:
        lm: The model.
        history: Text tokens of the history.
        token: The text token of every sampled patch; forced, so that speech does not end.
        steps: Number of steps.

    Returns:
        Wall seconds of each step, and the median bandwidth between steps, which varies on a shared machine.
    """
    from speechgpt2.lm.sampling import SamplingParams

    device = str(lm.device)
    warmup, sampling, force = 3, SamplingParams.for_batch(1, device=lm.device), torch.tensor([token], device=lm.device)
    state = lm.init_state(1, len(history) + warmup + steps)
    hidden, state = lm.prefill(lm.prompt.text_patches(history), state)
    memory, seconds, bandwidths = Memory(device=device), [], []
    for i in range(warmup + steps):
        if i % BANDWIDTH_INTERVAL == 0:
            bandwidths.append(memory.bandwidth())
        begin = time.perf_counter()
        hidden, state = lm.prefill(lm.sample(hidden, state, sampling, force).patches, state)
        synchronize(device)
        seconds.append(time.perf_counter() - begin)
    return seconds[warmup:], float(np.median(bandwidths))


def bytes_read(lm: Any, spoken: bool) -> int:
    """Return the bytes of weights that a step reads. An embedding table counts only as the text head."""
    head = lm.text_embedding if lm.text_head is None else lm.text_head
    head_bytes = weight_bytes(head) if lm.tied_head is None else lm.tied_head.nbytes
    size = weight_bytes(lm.backbone) + head_bytes + weight_bytes(lm.patch_projector)
    return size + spoken * lm.config.patch_frames * weight_bytes(lm.patch_decoder)


def small_config() -> Any:
    """Return an `LMConfig` of the sizes of Qwen2.5-0.5B and the released patch decoder."""
    from speechgpt2.lm.config import BackboneConfig, LMConfig, PatchDecoderConfig

    backbone = BackboneConfig(vocab=151_936, width=896, layers=24, heads=14, kv_heads=2, ffn=4864, tied_embeddings=True)
    return LMConfig(backbone, PatchDecoderConfig(width=1024, layers=8, heads=16, ffn=4096))


def with_random_weights(config: Any) -> Any:
    """Return a `SpeechLM` of `config` (an `LMConfig`) with `placeholder_tokenizer`."""
    from speechgpt2.lm.model import SpeechLM

    return SpeechLM(config, placeholder_tokenizer(config)).eval()


def placeholder_tokenizer(config: Any) -> Any:
    """Return a tokenizer for an `LMConfig` that knows the special tokens, and takes every other word for one token."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = config.prompt
    special = [words.eos, words.speech_start, words.speech_end, words.filler, words.last_filler, words.transcript_end]
    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(special)
    return tokenizer


def main(
    model: Any = RANDOM,
    dtypes: tuple[str, ...] = ("float32", "bfloat16"),
    threads: int = 2,
    steps: int = 40,
    turns: int = 10,
    questions: Path | None = None,
    out: str | Path | None = None,
    device: str = "cpu",
) -> dict[str, list[Any]]:
    """Time a model's steps, and its turns unless its weights are random; print the tables and return their rows.

    Args:
        model: A name, a folder, a `SpeechGPT`, or `RANDOM`.
        dtypes: Types of the weights for the steps: also int8 and int4.
        threads: Threads of torch.
        steps: Number of steps to time.
        turns: Number of turns to time.
        questions: A folder of recordings to ask; None for those in the package.
        out: A JSON file for the results.
        device: Where the model computes.

    Raises:
        UserError: An argument is invalid.
    """
    if not set(dtypes) <= {*DTYPES, *KINDS}:
        raise UserError(f"dtypes must be of {', '.join((*DTYPES, *KINDS))}")
    console = open_console()
    machine = measure(threads, device=device)
    machine.report(console)
    tables: dict[str, list[Any]] = {"Steps of one stream": [], "Whole turns": []}
    if model != RANDOM:
        tables["Whole turns"] = bench_turns(load_model(model, device), turns, load_questions(questions))
    name = str(model) if isinstance(model, (str, Path)) else "model"
    for dtype in dtypes:
        lm = _language_model(model).to(device, DTYPES.get(dtype, torch.bfloat16))
        if dtype in KINDS:
            quantize_model(lm, Quantization(dtype))
        pack(lm)
        tables["Steps of one stream"] += bench_steps(lm, name, dtype, steps)
    report.publish(tables, console, out, measured=machine)
    return tables


def _language_model(model: Any) -> Any:
    """Return the language model of a name, a folder or a `SpeechGPT`; freshly loaded if possible."""
    from speechgpt2.lm.model import SpeechLM

    if model == RANDOM:
        return with_random_weights(small_config())
    return SpeechLM.from_pretrained(model) if isinstance(model, (str, Path)) else model.lm


def bench_turns(model: Any, turns: int, questions: Sequence[np.ndarray]) -> list[TimeRow]:
    """Time whole spoken turns of a `SpeechGPT`: first audio after the question's end, and the turn over its speech.

    Args:
        model: The model, as its users load it.
        turns: How many turns are timed, after one that is not.
        questions: Recordings [N] at 24 kHz, asked in turn.
    """
    spoken = [Turn.user(speech=questions[i % len(questions)]) for i in range(turns + 1)]
    return time_rows([answer_turn(model, turn, "s2s") for turn in spoken][1:])
