"""The language model: text and speech in one sequence, a patch per position (120 ms of speech, or one text token).

    lm = SpeechLM.from_pretrained("mini")
    state = lm.init_state(batch=1, capacity=1024)
    hidden, state = lm.prefill(lm.prompt.system_prompt("t2t"), state)
    hidden, state = lm.prefill(lm.prompt.user_text("Hello"), state)
    for step in lm.generate(hidden, state, SamplingParams.of(1)): ...

A position takes the sum of its text embedding and its projected code embeddings; the state after it predicts the next
position's text token and, through the patch decoder, its codes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from speechgpt2 import config as configs
from speechgpt2.errors import UserError
from speechgpt2.lm.backbone import CausalStack, StackState
from speechgpt2.lm.config import LMConfig
from speechgpt2.lm.draft_head import DraftHead
from speechgpt2.lm.patch_decoder import PatchDecoder
from speechgpt2.lm.prompt import Prompt
from speechgpt2.lm.sampling import Sampler, SamplingParams
from speechgpt2.nn.linear import HalfKernel, Kernel, Linear, linear, packed
from speechgpt2.nn.sync import can_sync
from speechgpt2.streaming import Cache
from speechgpt2.types import Patches

CONFIG_FILE, WEIGHTS_FILE = "lm.json", "lm.safetensors"
MAX_PATCHES = 1024  # of one reply
UNFORCED = -1  # in `force`: draw this row's text token


class LMState(NamedTuple):
    """`speech_depths [B, capacity + 2]` (int64) holds speech segments opened less those closed, after so many patches.

    All of it follows from each row's position, so that a row rewinds by moving its position back.
    """

    stack: StackState
    speech_depths: Tensor

    @property
    def position(self) -> Tensor:
        """Patches taken in, `[B]`."""
        return self.stack.position

    @property
    def speech_depth(self) -> Tensor:
        """Speech segments opened less those closed, `[B]`; not 0: within speech."""
        return self.speech_depths.gather(1, self.stack.position[:, None])[:, 0]


class GenerationStep(NamedTuple):
    """One generated position: `patches` [B, 1], the rows that ran (`active [B]`), hidden `[B, D]` and state after."""

    patches: Patches
    active: Tensor
    hidden: Tensor
    state: LMState


class VerifiedTokens(NamedTuple):
    """Text that was written at once: `patches [B, A]`, of which each row keeps the first `counts [B]`, the hidden
    states after them, `[B, A, D]`, and the state after what is kept.
    """

    patches: Patches
    counts: Tensor
    hidden: Tensor
    state: LMState

    def last(self, before: Tensor) -> Tensor:
        """The hidden state of each row's last token, `[B, D]`; of a row that wrote none, as it was `before`."""
        index = (self.counts - 1).clamp(min=0)[:, None, None].expand(-1, -1, self.hidden.shape[-1])
        return torch.where(self.counts[:, None] > 0, self.hidden.gather(1, index)[:, 0], before)


class SpeechLM(nn.Module):
    """Backbone, patch decoder, and the two embeddings that feed them. See the module's text."""

    def __init__(self, config: LMConfig, tokenizer: Tokenizer):
        """Errors: `UserError` if the tokenizer has more tokens than the model, or lacks a special one."""
        super().__init__()
        b, width = config.backbone, config.patch_decoder.width
        if tokenizer.get_vocab_size() > b.vocab:
            raise UserError(f"the tokenizer has {tokenizer.get_vocab_size()} tokens, the model only {b.vocab}")
        self.config, self.prompt = config, Prompt(config, tokenizer)
        self.text_embedding = nn.Embedding(b.vocab, b.width)
        self.text_head = None if b.tied_head else Linear(b.width, b.vocab, bias=False)
        self.patch_projector = Linear(config.patch_frames * width, b.width, bias=False)
        self.backbone = CausalStack(b)
        self.patch_decoder = PatchDecoder(config)
        self.draft_head = DraftHead(b.width) if config.draft_tokens else None
        self.packed: Kernel | None = None
        initialize(self)

    @property
    def device(self) -> torch.device:
        return self.text_embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What hidden states are computed in; that of the weights, unless the model is packed."""
        return self.backbone.norm.weight.dtype

    def pack(self, rows: int, half: bool) -> None:
        """A tied text head; see `nn.linear.pack`. Where all matrices are read as float16, which is computed in float32,
        there is nothing to be gained by rounding in between.
        """
        if self.text_head is None and self.packed is None:
            self.packed = packed(self.text_embedding.weight, None, rows, half)
        if all(isinstance(m.packed, HalfKernel) for m in self.modules() if isinstance(m, Linear)):
            for norm in self.modules():
                if isinstance(norm, nn.RMSNorm):
                    norm.float()

    def init_state(self, batch: int, capacity: int) -> LMState:
        """Nothing seen yet; room for `capacity` patches in each of `batch` rows."""
        speech_depths = torch.zeros(batch, capacity + 2, dtype=torch.int64, device=self.device)
        return LMState(self.backbone.init_state(batch, capacity), speech_depths)

    def embed(self, patches: Patches) -> Tensor:
        """What the backbone reads: `[B, P, D]`."""
        frames = self.patch_decoder.codes.embed(patches.codes.to(self.device)).to(self.dtype)  # [B, P, G, L]
        return self.text_embedding(patches.text.to(self.device)) + self.patch_projector(frames.flatten(2))

    def forward(self, patches: Patches, segments: Tensor | None = None) -> Tensor:
        """Whole sequences, to learn from: hidden `[B, P, D]`; `segments [B, P]` keeps packed sequences apart."""
        return self.backbone(self.embed(patches), segments=segments)[0]

    def text_logits(self, hidden: Tensor) -> Tensor:
        """`[..., D]` -> `[..., vocab]`."""
        if self.text_head is not None:
            return self.text_head(hidden)
        return linear(hidden, self.text_embedding.weight, packed=self.packed)

    def code_logits(self, hidden: Tensor, codes: Tensor) -> Tensor:
        """Teacher-forced: states `[N, D]` and the next positions' `codes [N, G, K]` -> `[N, G, K, V]`."""
        return self.patch_decoder(hidden, codes)

    @torch.no_grad()
    def prefill(
        self, patches: Patches, state: LMState, lengths: Tensor | None = None, kv_length: int | None = None
    ) -> tuple[Tensor, LMState]:
        """Take in patches: the hidden state of each row's last one, `[B, D]`, and the state after them.

        `lengths [B]`: how many count in each row; a row of 0 stays as it is, and its hidden means nothing.
        `kv_length`: see `CausalStack.forward`. Errors: ValueError past the state's capacity.
        """
        hidden, stack = self.backbone(self.embed(patches), state.stack, lengths, kv_length=kv_length)
        assert stack is not None
        self._update_speech_depths(patches.text.to(self.device), state, lengths)
        if lengths is None:
            return hidden[:, -1], LMState(stack, state.speech_depths)
        last = (lengths - 1).clamp(min=0)[:, None, None].expand(-1, -1, hidden.shape[2])
        return hidden.gather(1, last)[:, 0], LMState(stack, state.speech_depths)

    @torch.no_grad()
    def sample(self, hidden: Tensor, state: LMState, sampling: SamplingParams, force: Tensor | None = None) -> Patches:
        """The next patch of each row, `[B, 1]`, from `hidden [B, D]`; it still has to be taken in by `prefill`.

        A row writes codes while its history holds different numbers of speech starts and ends, unless this very token
        ends speech. `force [B]`: text tokens to take in place of drawing, `UNFORCED` where there is none.
        """
        text = Sampler(self._text_sampling(sampling), state.position).sample(self.text_logits(hidden)[:, None], 0)[:, 0]
        if force is not None:
            text = torch.where(force == UNFORCED, text, force)
        speaking = (state.speech_depth != 0) & (text != self.prompt.special_ids.speech_end)
        silent = self._without_speech(text[:, None])
        if can_sync(speaking) and not bool(speaking.any()):
            return silent
        drawn = self.patch_decoder.sample(hidden, sampling, state.position)
        return silent._replace(codes=torch.where(speaking[:, None, None, None], drawn[:, None], silent.codes))

    @torch.no_grad()
    def draft_and_verify(
        self,
        hidden: Tensor,
        state: LMState,
        active: Tensor,
        kv_length: int | None = None,
        max_tokens: int | None = None,
    ) -> VerifiedTokens:
        """Write up to `1 + draft_tokens` (or `max_tokens`) text tokens in the rows `active [B]`, all outside speech.

        The first token follows from `hidden [B, D]`; those after it are guessed, all are taken in, and kept are those
        that the states between them lead to; so the text is the same as if it had been written token by token. After
        a token that begins speech or ends the reply nothing is kept. `kv_length`: see `CausalStack.forward`; rows need
        room for all guesses. Errors: `UserError` in a model without a draft head.
        """
        if self.draft_head is None:
            raise UserError("this model has no draft head")
        ids, tokens = self.prompt.special_ids, [self.text_logits(hidden).argmax(-1)]
        x = hidden
        for _ in range(min(self.config.draft_tokens, (max_tokens or MAX_PATCHES) - 1)):
            x = self.draft_head(x, self.text_embedding(tokens[-1]))
            tokens.append(self.text_logits(x).argmax(-1))
        text = torch.stack(tokens, dim=1)
        patches = self._without_speech(text)
        tried = active.long() * text.shape[1]
        after, stack = self.backbone(self.embed(patches), state.stack, tried, kv_length=kv_length)
        assert stack is not None
        goes_on = (text[:, :-1] != ids.speech_start) & (text[:, :-1] != ids.eos)
        agrees = goes_on & (self.text_logits(after[:, :-1]).argmax(-1) == text[:, 1:])
        counts = active.long() * (1 + agrees.long().cumprod(1).sum(1))
        self._update_speech_depths(text, state, counts)
        return VerifiedTokens(patches, counts, after, at_position(state, state.position + counts))

    def generate(
        self, hidden: Tensor, state: LMState, sampling: SamplingParams, max_patches: int = MAX_PATCHES
    ) -> Iterator[GenerationStep]:
        """Draw and take in patches until every row has written eos (it stays in history), or `max_patches`."""
        active, left = torch.ones(len(hidden), dtype=torch.bool, device=hidden.device), max_patches
        while left > 0 and bool(active.any()):
            if self.draft_head is not None and not bool(state.speech_depth[active].any()):
                steps = self._draft_steps(hidden, state, active, left)
            else:
                steps = iter([self._sample_step(hidden, state, sampling, active)])
            for step in steps:
                hidden, state, left = step.hidden, step.state, left - 1
                yield step
                active = active & ~(step.active & (step.patches.text[:, 0] == self.prompt.special_ids.eos))

    def _sample_step(self, hidden: Tensor, state: LMState, sampling: SamplingParams, active: Tensor) -> GenerationStep:
        patches = self.sample(hidden, state, sampling)
        after, state = self.prefill(patches, state, active.long())
        return GenerationStep(patches, active, torch.where(active[:, None], after, hidden), state)

    def _draft_steps(self, hidden: Tensor, state: LMState, active: Tensor, max_tokens: int) -> Iterator[GenerationStep]:
        """What is written at once, as the steps that it stands for."""
        written = self.draft_and_verify(hidden, state, active, max_tokens=max_tokens)
        for i in range(int(written.counts.max())):
            running = i < written.counts
            hidden = torch.where(running[:, None], written.hidden[:, i], hidden)
            now = at_position(state, state.position + written.counts.clamp(max=i + 1))
            yield GenerationStep(Patches(*(part[:, i : i + 1] for part in written.patches)), running, hidden, now)

    def _without_speech(self, text: Tensor) -> Patches:
        """Tokens `text [B, P]` without speech."""
        c = self.config
        codes = torch.full((*text.shape, c.patch_frames, c.codebooks), c.no_speech, device=text.device)
        return Patches(text, codes)

    def _text_sampling(self, sampling: SamplingParams) -> SamplingParams:
        """How text is drawn: a draft is written down, not improvised, so only its voice varies."""
        if not self.config.prompt.chain_of_modality:
            return sampling
        return sampling._replace(temperature=torch.zeros_like(sampling.temperature))

    def _update_speech_depths(self, text: Tensor, state: LMState, lengths: Tensor | None) -> None:
        ids, position = self.prompt.special_ids, state.position
        change = (text == ids.speech_start).long() - (text == ids.speech_end).long()
        index = position[:, None] + torch.arange(1, text.shape[1] + 1, device=text.device)
        running = state.speech_depth[:, None] + change.cumsum(
            1
        )  # void past a row's length, as are the cells it goes to
        state.speech_depths.scatter_(1, index.clamp(max=state.speech_depths.shape[1] - 1), running)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
        patch_heads: int | None = None,
    ) -> SpeechLM:
        """Load a folder of ours or a released one, a built-in name, or a Hugging Face id.

        `dtype` None: as stored, but float32 for float16 on a CPU.
        `patch_heads`: heads of a released model's patch decoder, which its files do not tell. Errors: `UserError`.
        """
        from speechgpt2 import hub

        path = hub.resolve(name, CONFIG_FILE, "config.json")
        if path.name != CONFIG_FILE:
            from speechgpt2.compat.released_lm import load_released_lm

            return load_released_lm(path.parent, dtype, device, patch_heads)
        # The built-in weights store the draft head under the name "lookahead".
        stored = hub.load_tensors(path.parent / WEIGHTS_FILE)
        tensors = {re.sub(r"^lookahead\.", "draft_head.", name): tensor for name, tensor in stored.items()}
        with torch.device("meta"):
            model = cls(configs.load(LMConfig, path), hub.load_tokenizer(path.parent))
        model = model.to(dtype or _stored_dtype(tensors, device)).to_empty(device=device)
        hub.load_into(model, tensors, str(path.parent))
        return model.eval()

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write `lm.json`, `lm.safetensors` (in `dtype` where given) and `tokenizer.json`."""
        from speechgpt2 import hub

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        configs.dump(self.config, folder / CONFIG_FILE)
        hub.write_atomically(folder / "tokenizer.json", lambda path: self.prompt.tokenizer.save(str(path)))
        hub.save_tensors(folder / WEIGHTS_FILE, {name: t.to(dtype or t.dtype) for name, t in self.state_dict().items()})


def _stored_dtype(tensors: dict[str, Tensor], device: str | torch.device) -> torch.dtype | None:
    """The weights' own precision; float16 is only a way to store them where a processor has to compute."""
    stored = next(iter(tensors.values())).dtype if tensors else None
    return torch.float32 if stored == torch.float16 and torch.device(device).type == "cpu" else stored


def at_position(state: LMState, position: Tensor) -> LMState:
    """`state` at `position [B]`, of what was taken in."""
    return LMState(StackState(position, state.stack.layers), state.speech_depths)


def rewind(state: LMState, row: int, position: int) -> LMState:
    """`state` with `row` moved back to `position` patches: what came later never was."""
    moved = state.position.clone()
    moved[row] = moved[row].clamp(max=position)
    return at_position(state, moved)


def extend_capacity(state: LMState, capacity: int) -> LMState:
    """A copy with room for `capacity` patches, no less than are filled."""
    more = capacity - state.stack.capacity
    layers = tuple(Cache(*(F.pad(cells, (0, 0, 0, more)) for cells in cache)) for cache in state.stack.layers)
    return LMState(StackState(state.position, layers), F.pad(state.speech_depths, (0, more)))


def initialize(model: nn.Module, std: float = 0.02) -> None:
    """Normal weights, zero biases; the last matrix of a chain starts at zero."""
    for name, parameter in model.named_parameters():
        if "norm" in name:
            nn.init.ones_(parameter)
        elif name.endswith("bias") or ".chain.out." in name or "draft_head.out." in name:
            nn.init.zeros_(parameter)
        else:
            nn.init.normal_(parameter, std=std)
