"""Small trained parts beside frozen weights: low-rank updates, and rows for new tokens. The frozen may be quantized.

LoRA: Hu et al., 2021 (https://arxiv.org/abs/2106.09685). `merged_tensors` merges all into plain weights, one by one, so
that the saved model is like any other, and is not in memory twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechgpt2.errors import UserError
from speechgpt2.lm.model import SpeechLM
from speechgpt2.nn.linear import Linear
from speechgpt2.nn.quantized import FrozenLinear, Quantization, quantize
from speechgpt2.nn.uninitialized import return_memory


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank updates of the matrices whose module names match one of `targets` (`*` stands for anything)."""

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = ("backbone.layers.*",)

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"rank must be at least 1, not {self.rank}")


class LoraLinear(nn.Module):
    """x ↦ base(x) + (alpha / rank) · B A x, where `base` is frozen and B starts at zero."""

    def __init__(self, base: nn.Linear, config: LoraConfig):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale = config.alpha / config.rank
        self.down = nn.Parameter(torch.empty(config.rank, base.in_features))
        self.up = nn.Parameter(torch.zeros(base.out_features, config.rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[..., C]` to `[..., D]`."""
        low = F.linear(x, self.down.to(x.dtype))
        return self.base(x) + self.scale * F.linear(low, self.up.to(x.dtype))


class ExtendedEmbedding(nn.Module):
    """A frozen text embedding with trained rows for some tokens, `rows [n, D]`.

    A tied text head uses the same rows. Without them, training a few new tokens would need gradients and optimizer
    states of the whole vocabulary.
    """

    def __init__(self, embedding: nn.Embedding, tokens: Sequence[int]):
        super().__init__()
        self.embedding = embedding.requires_grad_(False)
        slots = torch.full((embedding.num_embeddings,), -1, dtype=torch.int64)
        slots[list(tokens)] = torch.arange(len(tokens))
        self.register_buffer("slots", slots, persistent=False)
        self.register_buffer("tokens", torch.tensor(list(tokens)), persistent=False)
        self.rows = nn.Parameter(embedding.weight[list(tokens)].detach().float().clone())

    @property
    def weight(self) -> Tensor:
        """The frozen rows, `[vocab, D]`; those of the new tokens are not in use."""
        return self.embedding.weight

    def forward(self, text: Tensor) -> Tensor:
        """Map tokens `[...]` to `[..., D]`."""
        slots = self.slots[text]  # type: ignore[index]
        frozen, trained = self.embedding(text), F.embedding(slots.clamp(min=0), self.rows)
        return torch.where(slots[..., None] >= 0, trained.to(frozen.dtype), frozen)

    def extend(self, logits: Tensor, hidden: Tensor) -> Tensor:
        """Replace the logits of the new tokens, `[N, vocab]`, by those of their rows, for `hidden [N, D]`."""
        new = F.linear(hidden, self.rows.to(hidden.dtype))
        return logits.index_copy(-1, self.tokens, new.to(logits.dtype))  # type: ignore[arg-type]


class ExtendedHead(nn.Module):
    """A frozen text head with trained rows for some tokens, `rows [n, D]`."""

    def __init__(self, head: nn.Linear, tokens: Sequence[int]):
        super().__init__()
        self.head = head.requires_grad_(False)
        self.register_buffer("tokens", torch.tensor(list(tokens)), persistent=False)
        self.rows = nn.Parameter(head.weight[list(tokens)].detach().float().clone())

    def forward(self, hidden: Tensor) -> Tensor:
        """Map `[..., D]` to logits `[..., vocab]`."""
        logits, new = self.head(hidden), F.linear(hidden, self.rows.to(hidden.dtype))
        return logits.index_copy(-1, self.tokens, new.to(logits.dtype))  # type: ignore[arg-type]


def add_adapters(model: SpeechLM, lora: LoraConfig | None, new_tokens: bool) -> None:
    """Put LoRA beside matrices, and rows for the special tokens beside the text embedding and the text head.

    Raises:
        UserError: If no matrix matches the targets.
    """
    if new_tokens:
        tokens = sorted({t for t in model.prompt.special_ids if t >= 0})
        model.text_embedding = ExtendedEmbedding(model.text_embedding, tokens)  # type: ignore[assignment]
        if model.text_head is not None:
            model.text_head = ExtendedHead(model.text_head, tokens)  # type: ignore[assignment]
    if lora is None:
        return
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and any(fnmatchcase(name, pattern) for pattern in lora.targets)
    ]
    if not names:
        raise UserError(f"lora: no matrix matches {', '.join(lora.targets)}")
    for name in names:
        parent, _, child = name.rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, child, LoraLinear(getattr(owner, child), lora))


def quantize_frozen(model: SpeechLM, quantization: Quantization) -> None:
    """Quantize the frozen matrices of the layers, one after the other. Embedding and text head stay as they are.

    Raises:
        UserError: If there is no frozen matrix, or one does not divide into groups.
    """
    names = [
        name
        for stack in ("backbone", "patch_decoder")
        for name, module in model.get_submodule(stack).named_modules(prefix=stack)
        if isinstance(module, Linear) and not module.weight.requires_grad
    ]
    if not names:
        raise UserError("quantize: no matrix is frozen; freeze some, such as backbone.*, and add lora")
    for name in names:
        parent, _, child = name.rpartition(".")
        owner = model.get_submodule(parent)
        layer = getattr(owner, child)
        setattr(owner, child, FrozenLinear(quantize(layer.weight, quantization), layer.bias))
        layer.weight = None  # its memory is returned before the next one is quantized
        return_memory()


def text_logits(model: SpeechLM, hidden: Tensor) -> Tensor:
    """Map `hidden [N, D]` to text logits `[N, vocab]`, with the rows of new tokens."""
    logits = model.text_logits(hidden)
    embedding: nn.Module = model.text_embedding
    is_tied = model.text_head is None
    return embedding.extend(logits, hidden) if is_tied and isinstance(embedding, ExtendedEmbedding) else logits


Value = Callable[[str, Tensor], Tensor]


class MergedTensor(NamedTuple):
    """A tensor of a plain model: its shape, and what makes it."""

    shape: tuple[int, ...]
    make: Callable[[], Tensor]


def merged_tensors(model: SpeechLM, value: Value) -> dict[str, MergedTensor]:
    """Return the weights of a plain model, each of which is made when it is needed.

    Args:
        model: A model, with adapters or without, quantized in part or not.
        value: Maps the name and the tensor of a parameter to what is saved, such as its average.
    """
    found = {
        name: MergedTensor(tuple(tensor.shape), partial(value, name, tensor))
        for name, tensor in model.state_dict().items()
    }
    modules = list(model.named_modules())
    for name, module in modules:
        if isinstance(module, FrozenLinear):
            shape = (module.out_features, module.in_features)
            found[f"{name}.weight"] = MergedTensor(shape, partial(_dequantized, f"{name}.weight", module, value))
    for name, module in modules:
        at = f"{name}."
        if isinstance(module, LoraLinear):
            up, down, base = (found.pop(at + part) for part in ("up", "down", "base.weight"))
            found[f"{at}weight"] = MergedTensor(base.shape, partial(_updated, module.scale, up, down, base))
            if f"{at}base.bias" in found:
                found[f"{at}bias"] = found.pop(f"{at}base.bias")
        elif isinstance(module, (ExtendedEmbedding, ExtendedHead)):
            frozen = "embedding" if isinstance(module, ExtendedEmbedding) else "head"
            rows, weight = found.pop(f"{at}rows"), found.pop(f"{at}{frozen}.weight")
            found[f"{at}weight"] = MergedTensor(weight.shape, partial(_with_rows, module, rows, weight))
    return found


def merged_state(model: SpeechLM, value: Value = lambda _, tensor: tensor) -> dict[str, Tensor]:
    """Return the weights of a plain model, all of them. The arguments are those of `merged_tensors`."""
    return {name: tensor.make() for name, tensor in merged_tensors(model, value).items()}


@torch.no_grad()
def _dequantized(name: str, layer: FrozenLinear, value: Value) -> Tensor:
    return value(name, layer.matrix.dequantize().float())


@torch.no_grad()
def _updated(scale: float, up: MergedTensor, down: MergedTensor, base: MergedTensor) -> Tensor:
    weight = base.make()
    return (weight.float() + scale * (up.make().float() @ down.make().float())).to(weight.dtype)


@torch.no_grad()
def _with_rows(module: ExtendedEmbedding | ExtendedHead, rows: MergedTensor, table: MergedTensor) -> Tensor:
    weight = table.make().clone()
    weight[module.tokens.to(weight.device)] = rows.make().to(weight.dtype)  # type: ignore[index, operator]
    return weight
