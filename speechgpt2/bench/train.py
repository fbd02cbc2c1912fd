"""Benchmark of training: the steps of a stage of the language model.

    sg2 bench train recipes/small/0-alignment.yaml --text-model Qwen2.5-0.5B --data data.yaml --codec mini

A step is products of large matrices for the most part. So the result is the share of the operations per second that
large products reach on this machine; they are measured between the steps. Nothing is saved.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from speechgpt2.bench.machine import Machine, count_flops, measure, open_console, synchronize
from speechgpt2.eval import report
from speechgpt2.eval.report import column
from speechgpt2.lm.model import SpeechLM
from speechgpt2.lm.packing import ExampleSource
from speechgpt2.lm.train import LMTrainConfig, LMTrainer


@dataclass(frozen=True)
class TrainSpeed:
    """Speed of training steps.

    Attributes:
        stage: Name of the configuration.
        positions: Positions of a step.
        seconds: Median time of a step.
        speed: Positions per second.
        tflop: Operations of the products in a step, in 10¹².
        gflops: Operations per second, in 10⁹.
        products: Those of large products, the median of measurements between the steps.
        share: Of the products' operations per second, those that a step reaches.
    """

    stage: str = column("stage")
    trained: float = column("M trained", ".1f")
    frozen: float = column("M frozen", ".1f")
    positions: int = column("positions")
    seconds: float = column("s", ".2f")
    speed: float = column("positions/s", ".0f")
    tflop: float = column("TFLOP", ".3f")
    gflops: float = column("GFLOP/s", ".0f")
    products: float = column("products, GFLOP/s", ".0f")
    share: float = column("of products", ".0%")


def bench(name: str, trainer: LMTrainer, steps: int, machine: Machine) -> TrainSpeed:
    """Time `steps` steps of a trainer, after one that is not timed.

    Args:
        name: Name of the configuration.
        trainer: A new trainer, without a limit of perplexity.
        steps: How many steps.
        machine: The measured machine.
    """
    config, device = trainer.config, str(trainer.device)
    flops = count_flops(lambda: trainer.step(0))
    seconds, products = [], []
    for step in range(1, steps + 1):
        synchronize(device)
        began = time.perf_counter()
        trainer.step(step)
        synchronize(device)
        seconds.append(time.perf_counter() - began)
        products.append(measure(machine.threads, tries=2, device=device).flops)
    typical = replace(machine, flops={kind: float(np.median([f[kind] for f in products])) for kind in products[0]})
    best = typical.flops["bfloat16" if typical.has_bf16 else "float32"]
    median, positions = float(np.median(seconds)), config.rows * config.row_patches * config.accumulate
    trained = sum(parameter.numel() for parameter in trainer.trained.values())
    frozen = sum(parameter.numel() for parameter in trainer.losses.parameters() if not parameter.requires_grad)
    rate = flops / median
    counts = trained / 1e6, frozen / 1e6, positions
    return TrainSpeed(name, *counts, median, positions / median, flops / 1e12, rate / 1e9, best / 1e9, rate / best)


def main(
    name: str,
    config: LMTrainConfig,
    model: SpeechLM,
    source: ExampleSource,
    steps: int = 5,
    threads: int = 2,
    out: str | Path | None = None,
    device: str = "cpu",
) -> TrainSpeed:
    """Time steps of a stage; print the table and return its row. For the first arguments see `lm.train.train`.

    Args:
        name: Name of the configuration.
        config: The stage. Its limit of perplexity is not checked.
        model: The model, which is trained by so many steps.
        source: Its examples.
        steps: How many steps are timed.
        threads: Threads of torch.
        out: A JSON file for the results.
        device: Where the model is trained.
    """
    console = open_console()
    machine = measure(threads, device=device)
    machine.report(console)
    settings = replace(config, steps=steps + 1, max_perplexity_ratio=None, workers=0)
    row = bench(name, LMTrainer(settings, model, source, torch.device(device)), steps, machine)
    report.publish({"Training steps of the language model": [row]}, console, out, measured=machine)
    return row
