"""The cost of a training run: memory of each device and time of a step, for 1 to 64 devices.

Weights, gradients, optimizer states and the moving average are counted. The tensors that a step keeps for its backward
pass are measured with PyTorch's fake tensors, which hold no data, so a model of any size is planned in seconds. Unless
stated otherwise, half of the positions learn text and half learn speech, which is an upper bound. Time is the number of
operations divided by the operations that a device computes in a second; communication and the loading of data are not
counted.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from speechgpt2.lm.adapters import add_adapters, quantize_frozen, text_logits
from speechgpt2.lm.config import LMConfig
from speechgpt2.lm.model import SpeechLM
from speechgpt2.lm.tokenizer import special_tokens, train_tokenizer
from speechgpt2.lm.train import LMTrainConfig, freeze, prepare_layers
from speechgpt2.nn.quantized import DEQUANTIZED_AT_ONCE, FrozenLinear

DEVICES = (1, 2, 4, 8, 16, 32, 64)
HALF, SINGLE = 2, 4  # bytes
GIB = float(1 << 30)
WORKSPACE = 8  # bytes that each weight takes while it is dequantized
MARGIN = 1.1  # for what the allocator and the libraries take


class StepCost(NamedTuple):
    """A run on one device: counts of parameters, and bytes.

    Attributes:
        trained: parameters that are trained.
        frozen: parameters that are not.
        weights: bytes of all weights.
        quantized: bytes of those that are quantized, which are whole on every device.
        largest: bytes of the largest part whose weights are whole at once in a sharded run.
        kept: bytes that a step keeps for its backward pass, with the gradient of the logits.
        workspace: bytes that it takes to dequantize a matrix.
        positions: of a step.
        recomputed: whether the backward pass computes the layers again.
    """

    trained: int
    frozen: int
    weights: int
    quantized: int
    largest: int
    kept: int
    workspace: int
    positions: int
    recomputed: bool


class Plan(NamedTuple):
    """The cost of a run on `devices` devices: bytes of each device, and seconds of a step."""

    devices: int
    weights: float
    states: float
    activations: float
    seconds: float

    @property
    def memory(self) -> float:
        """All bytes."""
        return self.weights + self.states + self.activations


def plan(config: LMTrainConfig, cost: StepCost, devices: int, flops: float) -> Plan:
    """Plan a run on `devices` devices of which each computes `flops` operations a second."""
    share = devices if config.sharded else 1
    gathered = cost.largest if share > 1 else 0
    states = cost.trained * (3 + bool(config.average)) * SINGLE  # gradient, two moments, average
    everything = cost.trained + cost.frozen
    # Two operations a weight forward, two for the gradient of the input, two for that of a trained weight.
    work = 4 * everything + 2 * cost.trained + (2 * everything if cost.recomputed else 0)
    seconds = work * cost.positions / flops
    weights = (cost.weights - cost.quantized) / share + cost.quantized + gathered
    return Plan(devices, weights, states / share, cost.kept + cost.workspace, seconds)


def step_cost(
    config: LMTrainConfig,
    shape: LMConfig,
    half: bool = True,
    fused: bool = True,
    shares: tuple[float, float] = (0.5, 0.5),
) -> StepCost:
    """Count what a step needs.

    Args:
        config: The run.
        shape: Sizes of the model.
        half: Whether products are computed, and frozen weights kept, in half precision.
        fused: Whether attention is computed by a fused kernel, which keeps no scores, as on a GPU.
        shares: Of the positions that learn text, and of those that learn speech.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    tokenizer = train_tokenizer([""], 300)  # only the special tokens matter
    tokenizer.add_special_tokens(special_tokens(shape.prompt))
    with FakeTensorMode():
        model = SpeechLM(shape, tokenizer)
        freeze(model, config.freeze)
        add_adapters(model, config.lora, config.new_tokens)
        if config.quantize is not None:
            quantize_frozen(model, config.quantize)
        matrices = [module.matrix for module in model.modules() if isinstance(module, FrozenLinear)]
        quantized = sum(matrix.nbytes for matrix in matrices)
        prepare_layers(model, config)
        parameters = dict(model.named_parameters())
        trained = sum(p.numel() for p in parameters.values() if p.requires_grad)
        frozen = sum(p.numel() for p in parameters.values()) - trained + sum(m.rows * m.columns for m in matrices)

        def size(p: Tensor) -> int:
            is_half = half and not p.requires_grad and p.dim() > 1
            return p.numel() * (HALF if is_half else SINGLE)

        layers = [*model.backbone.layers, *model.patch_decoder.stack.layers]
        of_layers = [sum(size(p) for p in layer.parameters()) for layer in layers]
        weights = sum(size(p) for p in parameters.values())
        kept = _kept(model, config, half, fused, shares)
        if config.checkpoint_activations:  # and what the layer that is computed again keeps
            plain = config.rows * config.row_patches, model.backbone.layers[0]
            kept += _kept_by_layer(*plain, shape, half, fused)
    largest = weights - sum(of_layers) + 2 * max(of_layers)  # outside the layers, and the next layer on its way
    positions = config.rows * config.row_patches * config.accumulate
    weights += quantized
    at_once = max((min(m.rows * m.columns, DEQUANTIZED_AT_ONCE) for m in matrices), default=0)
    return StepCost(
        trained, frozen, weights, quantized, largest, kept, WORKSPACE * at_once, positions,
        config.checkpoint_activations,
    )  # fmt: skip


def _kept(model: SpeechLM, config: LMTrainConfig, half: bool, fused: bool, shares: tuple[float, float]) -> int:
    """Return the bytes that a batch keeps for the backward pass."""
    rows, length = config.rows, config.row_patches
    counter = SavedBytes(model.parameters(), length if fused else None)
    with counter, torch.autocast("cpu", torch.bfloat16, enabled=half):
        x = torch.empty(rows, length, model.config.backbone.width, requires_grad=True)
        hidden, _ = model.backbone(x, segments=torch.zeros(rows, length, dtype=torch.int64))
        learnt = [round(share * rows * length) for share in shares]
        text, speech = (hidden.flatten(0, 1)[:count].clone() for count in learnt)  # selected by a mask, a copy
        logits = text_logits(model, text).float()
        F.cross_entropy(logits, torch.zeros(len(text), dtype=torch.int64))
        shape = (len(speech), model.config.patch_frames, model.config.codebooks)
        codes = torch.zeros(shape, dtype=torch.int64)
        F.cross_entropy(model.code_logits(speech, codes).float().flatten(0, 2), codes.flatten())
    return counter.bytes + logits.numel() * (SINGLE + (HALF if half else SINGLE))  # gradients of the logits


def _kept_by_layer(positions: int, layer: torch.nn.Module, shape: LMConfig, half: bool, fused: bool) -> int:
    from speechgpt2.lm.backbone import plan_training

    counter = SavedBytes(layer.parameters(), positions if fused else None)
    forward = type(layer).forward  # without the checkpoint
    with counter, torch.autocast("cpu", torch.bfloat16, enabled=half):
        x = torch.empty(1, positions, shape.backbone.width, requires_grad=True)
        forward(layer, x, None, plan_training(x, None, shape.backbone))
    return counter.bytes


class SavedBytes:
    """Counts the bytes of the tensors that autograd saves in its block, each storage once, parameters left out.

    With `scores`, the matrices of attention over that many positions are left out.
    """

    def __init__(self, parameters: object, scores: int | None = None):
        self.bytes = 0
        self.seen = {p.untyped_storage()._cdata: p for p in parameters}  # type: ignore[attr-defined]
        self.scores = scores
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._save, lambda x: x)

    def _save(self, x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        is_score = self.scores is not None and x.dim() >= 3 and x.shape[-2:] == (self.scores, self.scores)
        if storage._cdata not in self.seen and not is_score:
            self.seen[storage._cdata] = x  # type: ignore[assignment]
            self.bytes += storage.nbytes()
        return x

    def __enter__(self) -> SavedBytes:
        self.hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.hooks.__exit__(*error)
