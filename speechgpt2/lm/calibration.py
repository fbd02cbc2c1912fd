"""Quantize a language model so that its outputs on given sequences change least (nn/rounding.py).

    lm = load(checkpoint, torch.bfloat16)
    quantize_on(lm, Quantization("int4"), calibration_sequences(lm, texts))

Layers are quantized one after the other, each on the activations that the quantized ones before it give. The sequences
should be like those of later use, and in its languages: a few thousand tokens are enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from speechgpt2.errors import UserError
from speechgpt2.lm.backbone import DecoderStack, plan_training
from speechgpt2.lm.generation import generate
from speechgpt2.lm.model import SpeechLM
from speechgpt2.lm.sampling import SamplingParams
from speechgpt2.lm.segments import concat
from speechgpt2.nn.linear import Linear
from speechgpt2.nn.quantized import Quantization, quantizable, quantize, quantize_module
from speechgpt2.nn.rounding import TINY, Inputs
from speechgpt2.types import Patches

TOKENS = 4096  # most of the texts together
SEQUENCE_TOKENS = 512  # most of one sequence
REPLIES = 4  # spoken replies among the sequences
REPLY_PATCHES = 96  # most of a reply
MAX_POWER = 30.0  # of a position's activations, relative to the median
Progress = Callable[[str], None]  # gets a line to show


def no_progress(line: str) -> None:
    """Show nothing."""


class Moments(NamedTuple):
    """Second moments of a layer's inputs: the sum of x xᵀ, `[C, C]`, over `rows` inputs."""

    total: Tensor
    rows: int

    def inputs(self) -> Inputs:
        """Return what rounding needs to know."""
        return Inputs.from_moments(self.total / max(1, self.rows))


def greedy_replies(lm: SpeechLM, questions: Sequence[str]) -> dict[str, Patches]:
    """Return each question with the model's greedy spoken reply, `[1, P]`."""
    sequences, prompt = {}, lm.prompt
    for question in questions:
        start = concat(prompt.system_prompt("t2s"), prompt.user_text(question))
        hidden, state = lm.prefill(start, lm.init_state(1, start.text.shape[1] + REPLY_PATCHES + 8))
        steps = generate(lm, hidden, state, SamplingParams.greedy(device=lm.device), REPLY_PATCHES)
        sequences[question] = concat(start, *(Patches(*(part.cpu() for part in step.patches)) for step in steps))
    return sequences


@torch.no_grad()
def calibration_sequences(lm: SpeechLM, texts: Sequence[str], speaks: bool = True) -> list[Patches]:
    """Return sequences `[1, P]`: the beginnings of texts, and spoken replies to some of their lines.

    Args:
        lm: The model, not quantized.
        texts: The texts.
        speaks: Whether it has learnt to speak.

    Raises:
        UserError: If a text is empty.
    """
    sequences = []
    for text in texts:
        tokens = lm.prompt.encode(text)[: TOKENS // len(texts)]
        if not tokens:
            raise UserError("a text to calibrate on is empty")
        sequences += [tokens[start : start + SEQUENCE_TOKENS] for start in range(0, len(tokens), SEQUENCE_TOKENS)]
    lines = [line.strip()[:80] for text in texts for line in text.splitlines() if line.strip()]
    questions = lines[:: -(-len(lines) // REPLIES)] if speaks else []
    return [*map(lm.prompt.text_patches, sequences), *greedy_replies(lm, questions).values()]


@torch.no_grad()
def quantize_on(
    lm: SpeechLM, quantization: Quantization, sequences: Sequence[Patches], progress: Progress = no_progress
) -> None:
    """Quantize all matrices of a model in bfloat16. Those that no sequence reaches are rounded to the nearest.

    Args:
        lm: The model, changed in place; it is not arranged yet.
        quantization: How.
        sequences: What it should predict as before, `[1, P]` each.
        progress: Gets a line about what is under way.

    Raises:
        UserError: If a matrix does not divide into groups.
    """
    for _, module in quantizable(lm):
        for weight in module.unquantized().values():
            quantization.check_divides(weight.shape[1])
    steps = Steps(len(lm.backbone.layers) + len(lm.patch_decoder.stack.layers), progress)
    hidden = _quantize_stack(lm.backbone, [lm.embed(patches) for patches in sequences], quantization, steps)
    spoken, codes = _spoken(lm, hidden, sequences)
    if len(spoken):
        _quantize_patch_decoder(lm, spoken, codes, quantization, steps)
    progress("text head")
    head, name = (lm, "tied_head") if lm.text_head is None else (lm.text_head, "weight")
    moments = _moments_of(torch.cat([row[0] for row in hidden]))
    head.set_quantized(name, quantize(head.unquantized()[name], quantization, moments.inputs()))
    for _, module in list(quantizable(lm)):
        for name in module.unquantized():
            quantize_module(module, name, quantization, lm.device)


class Steps:
    """Counts layers, and shows the number of each."""

    def __init__(self, total: int, progress: Progress):
        self.total, self.progress, self.done = total, progress, 0

    def next(self) -> None:
        """Show the next number."""
        self.done += 1
        self.progress(f"layer {self.done} of {self.total}")


def _spoken(lm: SpeechLM, hidden: Sequence[Tensor], sequences: Sequence[Patches]) -> tuple[Tensor, Tensor]:
    """Return the hidden states `[N, D]` before each patch of speech, and its codes `[N, G, K]`."""
    following = torch.cat([patches.codes[0, 1:] for patches in sequences]).to(lm.device)
    before = torch.cat([row[0, :-1] for row in hidden])
    speaks = following[:, 0, 0] != lm.config.no_speech
    return before[speaks], following[speaks]


def _quantize_patch_decoder(
    lm: SpeechLM, hidden: Tensor, codes: Tensor, quantization: Quantization, steps: Steps
) -> None:
    decoder = lm.patch_decoder
    entered = decoder.enter(hidden)[:, None]
    decoder.enter.set_quantized("weight", quantize(decoder.enter.weight, quantization, _moments_of(hidden).inputs()))
    earlier = decoder.codes.embed(codes[:, :-1]).to(hidden.dtype)
    _quantize_stack(decoder.stack, [torch.cat([entered, earlier], dim=1)], quantization, steps)


def _quantize_stack(
    stack: DecoderStack, inputs: list[Tensor], quantization: Quantization, steps: Steps
) -> list[Tensor]:
    """Quantize the layers of a stack on its inputs `[B, P, D]`; returns the stack's outputs."""
    plans = [plan_training(x, None, stack.config) for x in inputs]
    for layer in stack.layers:
        steps.next()
        with _observed(layer) as moments:
            for x, plan in zip(inputs, plans):
                layer(x, None, plan)
        quantized = {linear: quantize(linear.weight, quantization, m.inputs()) for linear, m in moments.items()}
        for linear, matrix in quantized.items():
            linear.weight = nn.Parameter(matrix.dequantize(), requires_grad=False)
        inputs = [layer(x, None, plan) for x, plan in zip(inputs, plans)]
        for linear, matrix in quantized.items():
            linear.set_quantized("weight", matrix)
    return [stack.norm(x) for x in inputs]


@contextmanager
def _observed(layer: nn.Module) -> Iterator[dict[Linear, Moments]]:
    """Collect the moments of the inputs of a layer's linear parts, while it runs in the `with` block."""
    moments: dict[Linear, Moments] = {}

    def observe(linear: Linear, args: tuple[Tensor, ...]) -> None:
        new, old = _moments_of(args[0].flatten(0, -2)), moments.get(linear)
        moments[linear] = new if old is None else Moments(old.total.add_(new.total), old.rows + new.rows)

    hooks = [part.register_forward_pre_hook(observe) for part in layer.modules() if isinstance(part, Linear)]
    try:
        yield moments
    finally:
        for hook in hooks:
            hook.remove()


def _moments_of(x: Tensor) -> Moments:
    """Return the moments of `x [N, C]`.

    Models put enormous activations on a first token (Sun et al., 2024, https://arxiv.org/abs/2402.17762). Their power
    is limited, or one position would decide how all others are rounded.
    """
    x = x.float()
    power = x.square().mean(dim=1, keepdim=True)
    x = x * (MAX_POWER * power.median() / power.clamp(min=TINY)).sqrt().clamp(max=1.0)
    return Moments(x.T @ x, len(x))
