"""Losses with labels of which some are unknown."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from speechgpt2.training.distributed import part_of_mean

UNKNOWN = -1


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of `logits [..., C]` over the known `labels [...]`, or 0 if none is known.

    Of several processes each returns its part, and the mean of the parts is that over all labels.
    """
    error = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=UNKNOWN, reduction="sum")
    return part_of_mean(error, (labels != UNKNOWN).sum())
