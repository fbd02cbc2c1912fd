"""Generate replies: sample and read patch after patch, or draft and verify several text tokens at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from speechgpt2.lm.grammar import TextConstraint
from speechgpt2.lm.model import MAX_PATCHES, SampledPatches, SpeechLM, VerifiedTokens
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


class Steps:
    """How `generate` computes a step. `captured_steps.CapturedSteps` does it by CUDA graphs."""

    def __init__(self, lm: SpeechLM):
        self.lm = lm

    def init_state(self, capacity: int) -> LMState:
        """Return the empty state of a row with room for at least `capacity` patches."""
        return self.lm.init_state(1, capacity)

    def sample(
        self, hidden: Tensor, state: LMState, sampling: SamplingParams, active: Tensor, allowed: Tensor | None
    ) -> tuple[SampledPatches, Tensor, LMState]:
        """Sample the next patch of each row and read it where `active`: `SpeechLM.sample` and `SpeechLM.prefill`."""
        sampled = self.lm.sample(hidden, state, sampling, allowed=allowed)
        return sampled, *self.lm.prefill(sampled.patches, state, active.long())

    def draft(self, hidden: Tensor, state: LMState, active: Tensor, max_tokens: int) -> VerifiedTokens:
        """Draft and read text: `SpeechLM.draft_and_verify`."""
        return self.lm.draft_and_verify(hidden, state, active, max_tokens=max_tokens)


def generate(
    lm: SpeechLM,
    hidden: Tensor,
    state: LMState,
    sampling: SamplingParams,
    max_patches: int = MAX_PATCHES,
    constraint: TextConstraint | None = None,
    steps: Steps | None = None,
) -> Iterator[GenerationStep]:
    """Sample and read patches until every row has generated eos, which stays in history, or `max_patches`.

    Args:
        lm: The model. With a draft head it drafts text outside speech.
        hidden: The hidden state of each row's last patch, `[B, D]`.
        state: The state after it.
        sampling: Parameters of each row.
        max_patches: Limit of patches.
        constraint: The constraint of the text, for a single row.
        steps: How steps are computed; None: `Steps`.
    """
    steps = steps or Steps(lm)
    active, left = torch.ones(len(hidden), dtype=torch.bool, device=hidden.device), max_patches
    while left > 0 and bool(active.any()):
        allowed = None if constraint is None else constraint.allowed()
        if allowed is None and lm.draft_head is not None and not bool(state.speech_depth[active].any()):
            new = _draft_steps(steps, hidden, state, active, left)
        else:
            new = iter([_sample_step(steps, hidden, state, sampling, active, allowed)])
        for step in new:
            if constraint is not None and not constraint.accept(int(step.patches.text)):
                break  # this position is sampled again
            hidden, state, left = step.hidden, step.state, left - 1
            yield step
            active = active & ~(step.active & lm.prompt.special_ids.ends_reply(step.patches.text[:, 0]))


def _sample_step(
    steps: Steps,
    hidden: Tensor,
    state: LMState,
    sampling: SamplingParams,
    active: Tensor,
    allowed: np.ndarray | None,
) -> GenerationStep:
    bits = None if allowed is None else torch.tensor(allowed, device=hidden.device)[None]
    sampled, after, state = steps.sample(hidden, state, sampling, active, bits)
    return GenerationStep(*sampled, active, torch.where(active[:, None], after, hidden), state)


def _draft_steps(
    steps: Steps, hidden: Tensor, state: LMState, active: Tensor, max_tokens: int
) -> Iterator[GenerationStep]:
    """Yield drafted tokens as single steps."""
    verified = steps.draft(hidden, state, active, max_tokens)
    for i in range(int(verified.counts.max())):
        running = i < verified.counts
        hidden = torch.where(running[:, None], verified.hidden[:, i], hidden)
        now = at_position(state, state.position + verified.counts.clamp(max=i + 1))
        patches = Patches(*(part[:, i : i + 1] for part in verified.patches))
        yield GenerationStep(patches, verified.log_probs[:, i], running, hidden, now)
