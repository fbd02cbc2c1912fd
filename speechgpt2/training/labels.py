"""Labels of which some are not known."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

UNKNOWN = -1


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the known of `labels [...]`, from `logits [..., C]`; 0 where none is known."""
    error = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=UNKNOWN, reduction="sum")
    return error / (labels != UNKNOWN).sum().clamp(min=1)
