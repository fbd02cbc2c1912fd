"""Steps of one conversation as CUDA graphs (nn/cuda_graph.py): to launch their kernels takes longer than these run."""

from __future__ import annotations

import torch
from torch import Tensor

from speechgpt2.lm.generation import Steps
from speechgpt2.lm.model import SampledPatches, SpeechLM, VerifiedTokens
from speechgpt2.lm.sampling import SamplingParams
from speechgpt2.lm.state import LMState, at_position
from speechgpt2.nn.cuda_graph import GraphedFunction, graph_length, graph_lengths
from speechgpt2.types import Patches

CAPACITY = 4096  # patches; 8 minutes of dialogue
STEPS_BEFORE_CAPTURE = 100  # a short reply is over before a capture would have paid


class CapturedSteps(Steps):
    """Steps of one row, captured over the caches of one state, which every conversation begins anew.

    They are computed without graphs before the capture, in another state (of a conversation that has outgrown it), and
    for the last tokens before a limit.
    """

    def __init__(self, lm: SpeechLM, capacity: int = CAPACITY):
        super().__init__(lm)
        self.state, self.count = lm.init_state(1, capacity), 0
        self.lengths = graph_lengths(capacity + 1)
        self.every_token = torch.full((1, -(-lm.config.backbone.vocab // 32)), -1, dtype=torch.int32, device=lm.device)
        self.sample_graph: GraphedFunction | None = None
        self.draft_graph: GraphedFunction | None = None

    def init_state(self, capacity: int) -> LMState:
        """Return the state at its beginning, or a larger one."""
        if capacity > self.state.stack.capacity:
            return super().init_state(capacity)
        return at_position(self.state, torch.zeros_like(self.state.position))

    @torch.inference_mode()
    def sample(
        self, hidden: Tensor, state: LMState, sampling: SamplingParams, active: Tensor, allowed: Tensor | None
    ) -> tuple[SampledPatches, Tensor, LMState]:
        """See `Steps`."""
        if not self._is_captured(state):
            return super().sample(hidden, state, sampling, active, allowed)
        arguments = hidden, state.position, *sampling, self.every_token if allowed is None else allowed
        if self.sample_graph is None:
            choices = [(speaks, length) for speaks in (False, True) for length in self.lengths]
            self.sample_graph = GraphedFunction(self._sample, [(*arguments, *choice) for choice in choices])
        sampled, after = self.sample_graph(*arguments, bool(state.speech_depth[0]), self._kv_length(state, 1))
        return sampled, after, at_position(state, state.position + 1)

    @torch.inference_mode()
    def draft(self, hidden: Tensor, state: LMState, active: Tensor, max_tokens: int) -> VerifiedTokens:
        """See `Steps`."""
        tokens = 1 + self.lm.config.draft_tokens
        if max_tokens < tokens or not self._is_captured(state):
            return super().draft(hidden, state, active, max_tokens)
        arguments = hidden, state.position
        if self.draft_graph is None:
            self.draft_graph = GraphedFunction(self._draft, [(*arguments, length) for length in self.lengths])
        patches, log_probs, counts, after = self.draft_graph(*arguments, self._kv_length(state, tokens))
        return VerifiedTokens(patches, log_probs, counts, after, at_position(state, state.position + counts))

    def _is_captured(self, state: LMState) -> bool:
        """Return whether a step of `state` is computed by graphs."""
        self.count += 1
        return state.stack.layers is self.state.stack.layers and self.count > STEPS_BEFORE_CAPTURE

    def _kv_length(self, state: LMState, new_patches: int) -> int:
        return graph_length(self.lengths, int(state.position) + new_patches)

    # captured: a call writes only cells after the position, which nobody reads

    def _sample(
        self,
        hidden: Tensor,
        position: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
        seed: Tensor,
        allowed: Tensor,
        speaks: bool,
        kv_length: int,
    ) -> tuple[SampledPatches, Tensor]:
        state, sampling = at_position(self.state, position), SamplingParams(temperature, top_k, top_p, seed)
        sampled = self.lm.sample(hidden, state, sampling, allowed=allowed, speaks=speaks)
        after, _ = self.lm.prefill(sampled.patches, state, torch.ones_like(position), kv_length)
        return sampled, after

    def _draft(self, hidden: Tensor, position: Tensor, kv_length: int) -> tuple[Patches, Tensor, Tensor, Tensor]:
        state, active = at_position(self.state, position), torch.ones_like(position, dtype=torch.bool)
        verified = self.lm.draft_and_verify(hidden, state, active, kv_length)
        return verified.patches, verified.log_probs, verified.counts, verified.hidden
