"""What quantized weights of a language model cost: perplexity, logits, and greedy choices.

    sg2 eval precision qwen2.5-0.5b.gguf --text README.md --text story.txt
    sg2 eval precision mini

All precisions run on the same machine through the kernels that inference uses. Each reads the same sequences, and its
predictions of every next token are compared with those of the float32 weights: the Kullback-Leibler divergence, and
how often the likeliest token is the same. The sequences are texts, and for a model of speech its own greedy replies
to typed questions, whose codes are predicted by the patch decoder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from torch import Tensor

from speechgpt2 import hub
from speechgpt2.errors import UserError
from speechgpt2.eval import report
from speechgpt2.eval.report import column
from speechgpt2.lm.calibration import Progress, calibration_sequences, greedy_replies, no_progress, quantize_on
from speechgpt2.lm.checkpoint import open_checkpoint
from speechgpt2.lm.config import PatchDecoderConfig
from speechgpt2.lm.model import SpeechLM
from speechgpt2.lm.text_model import from_text_model
from speechgpt2.nn.linear import pack
from speechgpt2.nn.quantized import Embedding, Quantizable, Quantization, quantizable, quantize_model
from speechgpt2.types import Patches

REFERENCE = "float32"
BASE = "bfloat16"  # against which perplexity is compared
PRECISIONS = (REFERENCE, BASE, "int8", "int4", "int4/128")  # int4/128: groups of 128 inputs
QUESTIONS = ("What is three plus five?", "What is the capital of France?", "中国的首都是哪里？")
ROWS = 128  # positions whose logits are computed at once
TEXT_DECODER = PatchDecoderConfig(width=128, layers=1, heads=2, ffn=128)  # of a text model, which has none


@dataclass(frozen=True)
class PrecisionRow:
    """One precision on one sequence.

    Attributes:
        change: Perplexity relative to that of `BASE`, less 1.
        error: Standard error of `change`, from the differences of single tokens.
        divergence: Mean Kullback-Leibler divergence from the reference, in nats a token.
        agreement: Share of positions with the reference's likeliest token.
        code_divergence: Mean divergence for the codes of speech, in nats a code.
        code_agreement: Share of the codes with the reference's likeliest code.
    """

    precision: str = column("weights")
    sequence: str = column("sequence")
    tokens: int = column("tokens")
    megabytes: float = column("MB", ".0f")
    perplexity: float = column("perplexity ↓", ".3f")
    change: float = column("change", "+.2%")
    error: float = column("±", ".2%")
    divergence: float = column("divergence ↓", ".5f")
    agreement: float = column("same token ↑", ".4f")
    code_divergence: float = column("codes: divergence ↓", ".5f")
    code_agreement: float = column("codes: same ↑", ".4f")


class ComparedModel(NamedTuple):
    """A model to compare: a function that loads it in float32, and whether it is a model of speech."""

    load: Callable[[], SpeechLM]
    speaks: bool


class ConvertedModel(NamedTuple):
    """A model in one precision, and the bytes of its weights."""

    lm: SpeechLM
    nbytes: int


class Prediction(NamedTuple):
    """Log probabilities of each next token `[P, V]`, and of the codes of speech `[S, V']`."""

    text: Tensor
    codes: Tensor


def find_model(model: str | Path) -> ComparedModel:
    """Find a model of speech, or a text model (a folder, a Hugging Face id, a GGUF file).

    Raises:
        UserError: It cannot be opened, or is quantized already.
    """
    if str(model).endswith(".gguf"):
        expanded = cache(partial(from_text_model, model, TEXT_DECODER))  # takes longer than a copy
        return ComparedModel(lambda: deepcopy(expanded()), speaks=False)
    try:
        checkpoint = open_checkpoint(model)
    except UserError as error:
        if "not a speech model" not in str(error):
            raise
        return ComparedModel(partial(from_text_model, model, TEXT_DECODER), speaks=False)
    if checkpoint.quantization is not None:
        raise UserError(f"{model}: already quantized; give the model from which it was made")
    return ComparedModel(partial(SpeechLM.from_pretrained, model, torch.float32), speaks=True)


def quantization_of(precision: str) -> Quantization | None:
    """Return how a precision quantizes, None if it does not. Raises `UserError` if it is unknown."""
    if precision not in PRECISIONS:
        raise UserError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision}")
    kind, _, group = precision.partition("/")
    return None if precision in (REFERENCE, BASE) else Quantization(kind, int(group or 32))  # type: ignore[arg-type]


def _check_fits(lm: SpeechLM, precision: str) -> None:
    """Raise `UserError` if a precision does not fit a matrix of the model."""
    quantization = quantization_of(precision)
    if quantization is not None:
        matrices = (module.unquantized() for _, module in quantizable(lm) if not isinstance(module, Embedding))
        for weight in (weight for module in matrices for weight in module.values()):
            quantization.check_divides(weight.shape[1])


def convert(
    lm: SpeechLM, precision: str, calibration: Sequence[str] = (), speaks: bool = True, progress: Progress = no_progress
) -> ConvertedModel:
    """Convert a float32 model, and pack it for inference.

    Args:
        lm: The model, which is changed.
        precision: Its precision.
        calibration: Texts on which it is calibrated if it is quantized.
        speaks: Whether it is a model of speech.
        progress: Gets a line about what is under way in a calibration.

    Raises:
        UserError: The precision is unknown, or int4 does not divide the model's matrices.
    """
    if precision != REFERENCE:
        lm = lm.to(torch.bfloat16)
    if (quantization := quantization_of(precision)) is not None:
        if calibration:
            quantize_on(lm, quantization, calibration_sequences(lm, calibration, speaks), progress)
        quantize_model(lm, quantization)
    matrices = sum(
        m.nbytes for part in lm.modules() if isinstance(part, Quantizable) for m in part.quantized().values()
    )
    nbytes = matrices + sum(parameter.nbytes for parameter in lm.parameters())
    pack(lm)
    return ConvertedModel(lm, nbytes)


@torch.inference_mode()
def predict(lm: SpeechLM, patches: Patches) -> Prediction:
    """Read a sequence `[1, P]`, and predict every next token and the codes of every next patch of speech."""
    state = lm.init_state(1, patches.text.shape[1])
    hidden, _ = lm.backbone(lm.embed(patches), state.stack)
    text = torch.cat([lm.text_logits(part).float().log_softmax(-1) for part in hidden[0, :-1].split(ROWS)])
    following = patches.codes[0, 1:].to(lm.device)
    speaks = following[:, 0, 0] != lm.config.no_speech
    logits = lm.code_logits(hidden[0, :-1][speaks], following[speaks])[..., : lm.config.codebook_size]
    return Prediction(text, logits.float().log_softmax(-1).flatten(0, 2))


def token_losses(prediction: Prediction, patches: Patches) -> Tensor:
    """Return the negative log probability of each next token of a sequence `[1, P]`, `[P − 1]`."""
    targets = patches.text[0, 1:, None].to(prediction.text.device)
    return -prediction.text.gather(1, targets)[:, 0]


def relative_perplexity(losses: Tensor, base: Tensor) -> tuple[float, float]:
    """Return the perplexity of `losses [N]` relative to that of `base [N]`, less 1, and its standard error.

    Both precisions find the same tokens hard, so the error of their difference is far below that of a perplexity.
    """
    difference = losses - base
    ratio = math.exp(float(difference.mean()))
    return ratio - 1, ratio * float(difference.std(correction=0)) / math.sqrt(len(difference))


def compare(
    name: str, sequence: str, nbytes: int, reference: Prediction, prediction: Prediction, losses: Tensor, base: Tensor
) -> PrecisionRow:
    """Return the row of one precision on one sequence.

    Args:
        name: The precision.
        sequence: Name of the sequence.
        nbytes: Bytes of the weights.
        reference: What the float32 weights predict.
        prediction: What this precision predicts.
        losses: Its `token_losses`.
        base: Those of `BASE`.
    """
    return PrecisionRow(
        name,
        sequence,
        len(losses),
        nbytes / 1e6,
        math.exp(float(losses.mean())),
        *relative_perplexity(losses, base),
        *distance(reference.text, prediction.text),
        *distance(reference.codes, prediction.codes),
    )


def distance(reference: Tensor, other: Tensor) -> tuple[float, float]:
    """Return the mean divergence of log probabilities `[N, V]`, and the share of equal choices; nan without rows."""
    if not len(reference):
        return math.nan, math.nan
    divergence = sum(float((a.exp() * (a - b)).sum()) for a, b in zip(reference.split(ROWS), other.split(ROWS)))
    return divergence / len(reference), float((reference.argmax(-1) == other.argmax(-1)).float().mean())


def evaluate(
    model: ComparedModel,
    texts: Mapping[str, str],
    precisions: Sequence[str] = PRECISIONS,
    tokens: int = 1024,
    calibration: Sequence[str] = (),
    progress: Progress = no_progress,
) -> Iterator[PrecisionRow]:
    """Yield the rows of all precisions, one model in memory at a time.

    Args:
        model: The model.
        texts: Texts by name.
        precisions: Those of `PRECISIONS` to compare.
        tokens: The most tokens of a text.
        calibration: Texts on which quantized models are calibrated; none: weights are rounded to the nearest.
        progress: Gets a line about what is under way in a calibration.

    Raises:
        UserError: A precision is unknown or does not fit the model, or a text is empty.
    """
    lm = model.load()
    for precision in precisions:  # before minutes of work
        _check_fits(lm, precision)
    lm = convert(lm, REFERENCE).lm
    sequences = {name: lm.prompt.text_patches(lm.prompt.encode(text)[:tokens]) for name, text in texts.items()}
    if short := next((name for name, patches in sequences.items() if patches.text.shape[1] < 2), None):
        raise UserError(f"{short}: holds no text")
    sequences |= greedy_replies(lm, QUESTIONS) if model.speaks else {}
    references = {name: predict(lm, patches) for name, patches in sequences.items()}
    del lm
    bases: dict[str, Tensor] = {}
    for precision in (BASE, *(p for p in precisions if p != BASE)):
        converted = convert(model.load(), precision, calibration, model.speaks, progress)
        for name, patches in sequences.items():
            prediction = predict(converted.lm, patches)
            losses = token_losses(prediction, patches)
            base = bases.setdefault(name, losses)  # the first precision is the base
            if precision in precisions:
                yield compare(precision, name, converted.nbytes, references[name], prediction, losses, base)
        del converted


def main(
    model: str | Path,
    texts: Sequence[Path] = (),
    precisions: Sequence[str] = PRECISIONS,
    tokens: int = 1024,
    threads: int = 1,
    out: Path | None = None,
    calibrate: Sequence[Path] = (),
) -> list[PrecisionRow]:
    """Compare precisions of a model, print the table and return its rows.

    Args:
        model: A model of speech, or a text model (a folder, a Hugging Face id, a GGUF file).
        texts: Files of text.
        precisions: Those of `PRECISIONS` to compare.
        tokens: The most tokens of a text.
        threads: Threads of torch.
        out: A JSON file for the rows.
        calibrate: Files of text on which quantized models are calibrated.

    Raises:
        UserError: The model or a text cannot be used.
    """
    for precision in precisions:
        quantization_of(precision)  # checks its name
    contents, calibration = {path.name: hub.read_text(path) for path in texts}, [*map(hub.read_text, calibrate)]
    torch.set_num_threads(threads)
    console, compared, rows = Console(), find_model(model), []
    if not contents and not compared.speaks:
        raise UserError("a text model is compared on texts: give --text FILE")
    with console.status("loading …") as status:
        for row in evaluate(compared, contents, precisions, tokens, calibration, status.update):
            rows.append(row)
            status.update(f"{row.precision}: {row.sequence} …")
    rows.sort(key=lambda row: PRECISIONS.index(row.precision))
    report.publish({"Precision of the weights": rows}, console, out)
    return rows
