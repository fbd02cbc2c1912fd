"""What a device computes, next to what the CPU computes in float32: the same weights in each precision.

Weights are quantized once, on the CPU, so a device differs by its products only. The built-in model reads its own
replies; a model of the released layout with random weights reads random patches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from speechgpt2.bench.lm import placeholder_tokenizer
from speechgpt2.errors import UserError
from speechgpt2.eval.precision import (
    PRECISIONS,
    QUESTIONS,
    REFERENCE,
    Prediction,
    distance,
    predict,
    quantization_of,
)
from speechgpt2.eval.report import column
from speechgpt2.lm.calibration import greedy_replies
from speechgpt2.lm.config import BackboneConfig, LMConfig, PatchDecoderConfig, released
from speechgpt2.lm.model import SpeechLM
from speechgpt2.nn.linear import pack
from speechgpt2.nn.quantized import Quantization, QuantizedMatrix, quantizable, quantize_part
from speechgpt2.types import Patches

TITLE = "Parity with the CPU in float32"
CPU = torch.device("cpu")
RANDOM_LAYOUT = LMConfig(  # layers like those of the released model, of a size that a CPU computes in a second
    BackboneConfig(vocab=8192, width=512, layers=4, heads=8, kv_heads=2, ffn=1408),
    PatchDecoderConfig(width=256, layers=2, heads=4, ffn=1024),
    released().prompt,
)
Matrices = dict[tuple[str, str], QuantizedMatrix]  # by the prefix of a module and the name in it


@dataclass(frozen=True)
class ParityRow:
    """One precision on one device against float32 on the CPU.

    Attributes:
        error: Largest difference of a text logit ÷ standard deviation of its position's logits.
        divergence: Mean Kullback-Leibler divergence of the next token, in nats.
        agreement: Share of positions with the same likeliest token.
        code_error: As `error`, of the logits of codes.
        code_divergence: As `divergence`, of codes.
        code_agreement: Share of the codes that are the likeliest in both.
    """

    model: str = column("model")
    weights: str = column("weights")
    device: str = column("device")
    tokens: int = column("tokens", "d")
    error: float = column("largest logit error, σ", ".4f")
    divergence: float = column("divergence", ".6f")
    agreement: float = column("same token", ".4f")
    code_error: float = column("codes: error, σ", ".4f")
    code_divergence: float = column("codes: divergence", ".6f")
    code_agreement: float = column("codes: same", ".4f")


class ParitySample(NamedTuple):
    """A model in float32 on the CPU, and the sequences `[1, P]` that it reads."""

    name: str
    lm: SpeechLM
    sequences: Sequence[Patches]


def random_sample(config: LMConfig = RANDOM_LAYOUT, patches: int = 256) -> ParitySample:
    """Return a model with random weights, whose layers all make a difference, and random patches, half of speech."""
    torch.manual_seed(0)
    lm = SpeechLM(config, placeholder_tokenizer(config)).eval()
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    text = torch.randint(0, config.backbone.vocab, (1, patches))
    codes = torch.randint(0, config.codebook_size, (1, patches, config.patch_frames, config.codebooks))
    silent = torch.arange(patches)[None] % 2 == 0
    return ParitySample("random", lm, [Patches(text, torch.where(silent[..., None, None], config.no_speech, codes))])


def mini_sample(questions: Sequence[str] = QUESTIONS) -> ParitySample:
    """Return the built-in model and its replies to typed questions."""
    lm = SpeechLM.from_pretrained("mini", torch.float32)
    return ParitySample("mini", lm, list(greedy_replies(lm, questions).values()))


def run(device: torch.device, samples: Sequence[str] = ("random", "mini")) -> Iterator[tuple[str, list[Any]]]:
    """Compare all precisions on the CPU and on a device; yields each row as soon as it is there, with its title."""
    makers: dict[str, Callable[[], ParitySample]] = {"random": random_sample, "mini": mini_sample}
    devices = [CPU] if device.type == "cpu" else [device, CPU]
    for name in samples:
        for row in compare(makers[name](), devices):
            yield TITLE, [row]


def compare(sample: ParitySample, devices: Sequence[torch.device]) -> Iterator[ParityRow]:
    """Yield the rows of a model in each precision on each device."""
    reference = _predict(sample.lm, sample.sequences)
    for precision in PRECISIONS:
        quantization = quantization_of(precision)
        try:
            base = sample.lm if precision == REFERENCE else deepcopy(sample.lm).to(torch.bfloat16)
            matrices = {} if quantization is None else quantized(base, quantization)
        except UserError:  # the groups do not divide its matrices
            continue
        for device in devices:
            if precision == REFERENCE and device.type == "cpu":
                continue  # the reference
            lm = deepcopy(base).to(device)
            use_quantized(lm, matrices)
            pack(lm)
            yield _row(sample.name, precision, device, reference, _predict(lm, sample.sequences))


def quantized(lm: SpeechLM, quantization: Quantization) -> Matrices:
    """Quantize the matrices of a model, which stays as it is. Raises `UserError` if one does not divide into groups."""
    return {
        (prefix, name): quantize_part(module, name, quantization)
        for prefix, module in quantizable(lm)
        for name in module.unquantized()
    }


def use_quantized(lm: SpeechLM, matrices: Matrices) -> None:
    """Put quantized matrices into the same model on any device, and arrange them for its kernels."""
    for prefix, module in list(quantizable(lm)) if matrices else ():
        for name in list(module.unquantized()):
            module.set_quantized(name, matrices[prefix, name].to(lm.device))
        module.arrange()


def _predict(lm: SpeechLM, sequences: Sequence[Patches]) -> Prediction:
    """Return the predictions of all sequences, on the CPU."""
    found = [predict(lm, patches) for patches in sequences]
    return Prediction(*(torch.cat([part.cpu() for part in parts]) for parts in zip(*found)))


def logit_error(reference: Tensor, other: Tensor) -> float:
    """Return the largest difference of logits ÷ the standard deviation of their row.

    Args:
        reference: Log probabilities `[N, V]`: logits less a number that all of a row have in common.
        other: The same of the other model.
    """
    if not len(reference):
        return math.nan
    a, b = (x - x.mean(-1, keepdim=True) for x in (reference, other))
    return float(((a - b).abs().amax(-1) / a.std(-1)).max())


def _row(name: str, precision: str, device: torch.device, reference: Prediction, found: Prediction) -> ParityRow:
    return ParityRow(
        name,
        precision,
        str(device),
        len(reference.text),
        logit_error(reference.text, found.text),
        *distance(reference.text, found.text),
        logit_error(reference.codes, found.codes),
        *distance(reference.codes, found.codes),
    )
