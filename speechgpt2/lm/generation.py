"""Generate replies: sample and read patch after patch, or draft and verify several text tokens at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from speechgpt2.lm.grammar import TextConstraint
from speechgpt2.lm.model import MAX_PATCHES, SpeechLM
from speechgpt2.lm.sampling import SamplingParams
from speechgpt2.lm.state import LMState, at_position
from speechgpt2.types import Patches


class GenerationStep(NamedTuple):
    """One generated position.

    `patches` are `[B, 1]`, `log_probs [B]` those of their text. `active [B]` tells which rows ran. `hidden [B, D]` and
    `state` are those after the position.
    """

    patches: Patches
    log_probs: Tensor
    active: Tensor
    hidden: Tensor
    state: LMState


def generate(
    lm: SpeechLM,
    hidden: Tensor,
    state: LMState,
    sampling: SamplingParams,
    max_patches: int = MAX_PATCHES,
    constraint: TextConstraint | None = None,
) -> Iterator[GenerationStep]:
    """Sample and read patches until every row has generated eos, which stays in history, or `max_patches`.

    Args:
        lm: The model. With a draft head it drafts text outside speech.
        hidden: The hidden state of each row's last patch, `[B, D]`.
        state: The state after it.
        sampling: Parameters of each row.
        max_patches: Limit of patches.
        constraint: The constraint of the text, for a single row.
    """
    active, left = torch.ones(len(hidden), dtype=torch.bool, device=hidden.device), max_patches
    while left > 0 and bool(active.any()):
        allowed = None if constraint is None else constraint.allowed()
        if allowed is None and lm.draft_head is not None and not bool(state.speech_depth[active].any()):
            steps = _draft_steps(lm, hidden, state, active, left)
        else:
            steps = iter([_sample_step(lm, hidden, state, sampling, active, allowed)])
        for step in steps:
            if constraint is not None and not constraint.accept(int(step.patches.text)):
                break  # this position is sampled again
            hidden, state, left = step.hidden, step.state, left - 1
            yield step
            active = active & ~(step.active & lm.prompt.special_ids.ends_reply(step.patches.text[:, 0]))


def _sample_step(
    lm: SpeechLM,
    hidden: Tensor,
    state: LMState,
    sampling: SamplingParams,
    active: Tensor,
    allowed: np.ndarray | None,
) -> GenerationStep:
    bits = None if allowed is None else torch.tensor(allowed, device=hidden.device)[None]
    patches, log_probs = lm.sample(hidden, state, sampling, allowed=bits)
    after, state = lm.prefill(patches, state, active.long())
    return GenerationStep(patches, log_probs, active, torch.where(active[:, None], after, hidden), state)


def _draft_steps(
    lm: SpeechLM, hidden: Tensor, state: LMState, active: Tensor, max_tokens: int
) -> Iterator[GenerationStep]:
    """Yield the tokens of one `draft_and_verify` as single steps."""
    verified = lm.draft_and_verify(hidden, state, active, max_tokens=max_tokens)
    for i in range(int(verified.counts.max())):
        running = i < verified.counts
        hidden = torch.where(running[:, None], verified.hidden[:, i], hidden)
        now = at_position(state, state.position + verified.counts.clamp(max=i + 1))
        patches = Patches(*(part[:, i : i + 1] for part in verified.patches))
        yield GenerationStep(patches, verified.log_probs[:, i], running, hidden, now)
