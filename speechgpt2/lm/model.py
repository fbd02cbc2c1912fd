"""The language model: text and speech in one sequence, one patch per position (a text token, or 120 ms of speech).

    lm = SpeechLM.from_pretrained("mini")
    state = lm.init_state(batch=1, capacity=1024)
    hidden, state = lm.prefill(lm.prompt.system_prompt("t2t"), state)
    hidden, state = lm.prefill(lm.prompt.user_text("Hello"), state)
    for step in generate(lm, hidden, state, SamplingParams.for_batch(1)): ...  # lm.generation

The input of a position is its text embedding plus its projected code embeddings. The hidden state after it predicts
the next position's text token and, through the patch decoder, its codes.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from speechgpt2 import config as configs
from speechgpt2 import hub
from speechgpt2.errors import UserError
from speechgpt2.lm.backbone import DecoderStack
from speechgpt2.lm.checkpoint import CONFIG_FILE, Checkpoint, open_checkpoint
from speechgpt2.lm.config import LMConfig
from speechgpt2.lm.draft_head import DraftHead
from speechgpt2.lm.greetings import model_greetings, save_greetings
from speechgpt2.lm.patch_decoder import PatchDecoder
from speechgpt2.lm.prompt import Prompt
from speechgpt2.lm.sampling import Sampler, SamplingParams, unpack_bits
from speechgpt2.lm.state import LMState, at_position
from speechgpt2.lm.weights import read_weights, save_weights
from speechgpt2.nn.linear import Kernel, Linear, linear, packed
from speechgpt2.nn.quantized import Embedding, Quantization, QuantizedKernel, QuantizedMatrix, quantizable
from speechgpt2.nn.sync import can_sync
from speechgpt2.nn.uninitialized import uninitialized
from speechgpt2.types import Patches

CPU = torch.device("cpu")
MAX_PATCHES = 1024  # of one reply
UNFORCED = -1  # in `forced_text`: sample this row's text token


class SampledPatches(NamedTuple):
    """The sampled patch of each row, `[B, 1]`, and the log-probabilities of its text, `[B]` float32."""

    patches: Patches
    log_probs: Tensor


class VerifiedTokens(NamedTuple):
    """Text tokens that were drafted and verified in one call.

    Each row keeps the first `counts [B]` of `patches [B, A]`. `log_probs [B, A]` (float32) are those of the tokens,
    `hidden [B, A, D]` the hidden states after them, and `state` is the state after the kept ones.
    """

    patches: Patches
    log_probs: Tensor
    counts: Tensor
    hidden: Tensor
    state: LMState

    def last_hidden(self, before: Tensor) -> Tensor:
        """Return each row's hidden state after its last kept token, `[B, D]`; if none is kept, its row of `before`."""
        index = (self.counts - 1).clamp(min=0)[:, None, None].expand(-1, -1, self.hidden.shape[-1])
        return torch.where(self.counts[:, None] > 0, self.hidden.gather(1, index)[:, 0], before)


class SpeechLM(nn.Module):
    """The backbone, the patch decoder, and the embeddings of text and codes."""

    def __init__(self, config: LMConfig, tokenizer: Tokenizer):
        """Build a model with random weights.

        Raises:
            UserError: If the tokenizer has more tokens than the model, or lacks a special token.
        """
        super().__init__()
        b, width = config.backbone, config.patch_decoder.width
        if tokenizer.get_vocab_size() > b.vocab:
            raise UserError(f"the tokenizer has {tokenizer.get_vocab_size()} tokens, the model only {b.vocab}")
        self.config, self.prompt = config, Prompt(config, tokenizer)
        self.text_embedding = Embedding(b.vocab, b.width)
        self.text_head = None if b.tied_embeddings else Linear(b.width, b.vocab, bias=False)
        self.patch_projector = Linear(config.patch_frames * width, b.width, bias=False)
        self.backbone = DecoderStack(b)
        self.patch_decoder = PatchDecoder(config)
        self.draft_head = DraftHead(b.width) if config.draft_tokens else None
        self.packed: Kernel | None = None  # of a tied text head
        self.tied_head: QuantizedMatrix | None = None
        initialize(self)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.backbone.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the hidden states: that of the weights, unless the model is packed."""
        return self.backbone.norm.weight.dtype

    def pack(self, rows: int, half: bool) -> None:
        """Pack a tied text head (`nn.linear.pack`).

        If every kernel reads float32, hidden states are kept in float32 as well.
        """
        if self.text_head is None and self.packed is None:
            self.packed = packed(self.text_embedding.weight, None, rows, half)
        kernels = [*(m.packed for m in self.modules() if isinstance(m, Linear)), *self.patch_decoder.codes.packed]
        if self.text_head is None:
            kernels.append(self.packed)
        if all(kernel is not None and kernel.reads_float32 for kernel in kernels):
            for norm in self.modules():
                if isinstance(norm, nn.RMSNorm):
                    norm.float()
            self.backbone.use_native()
            self.patch_decoder.stack.use_native()

    def init_state(self, batch: int, capacity: int) -> LMState:
        """Return an empty state of `batch` rows with room for `capacity` patches each."""
        depths = torch.zeros(batch, capacity + 2, dtype=torch.int64, device=self.device)
        return LMState(self.backbone.init_state(batch, capacity), depths)

    def embed(self, patches: Patches) -> Tensor:
        """Return the backbone's input, `[B, P, D]`."""
        frames = self.patch_decoder.codes.embed(patches.codes.to(self.device)).to(self.dtype)  # [B, P, G, L]
        return self.text_embedding(patches.text.to(self.device)) + self.patch_projector(frames.flatten(2))

    def forward(self, patches: Patches, segments: Tensor | None = None) -> Tensor:
        """Return the hidden states `[B, P, D]` of whole sequences, for training.

        `segments [B, P]` are the ids of packed sequences, which do not see each other.
        """
        return self.backbone(self.embed(patches), segments=segments)[0]

    def text_logits(self, hidden: Tensor) -> Tensor:
        """Map hidden states `[..., D]` to text logits `[..., vocab]`."""
        if self.text_head is not None:
            return self.text_head(hidden)
        return linear(hidden, self.text_embedding.weight, packed=self.packed)

    def code_logits(self, hidden: Tensor, codes: Tensor) -> Tensor:
        """Map hidden states `[N, D]` and the next positions' true `codes [N, G, K]` to logits `[N, G, K, V]`."""
        return self.patch_decoder(hidden, codes)

    @torch.no_grad()
    def prefill(
        self, patches: Patches, state: LMState, lengths: Tensor | None = None, kv_length: int | None = None
    ) -> tuple[Tensor, LMState]:
        """Read patches into the state.

        Args:
            patches: `[B, P]`.
            state: The state before them.
            lengths: Valid patches of each row, `[B]`. A row of length 0 stays unchanged, its hidden state is undefined.
            kv_length: See `DecoderStack.forward`.

        Returns:
            The hidden state of each row's last patch, `[B, D]`, and the state after the patches.

        Raises:
            ValueError: If a row exceeds the state's capacity.
        """
        hidden, stack = self.backbone(self.embed(patches), state.stack, lengths, kv_length=kv_length)
        assert stack is not None
        self._note_depths(patches.text.to(self.device), state)
        if lengths is None:
            return hidden[:, -1], LMState(stack, state.speech_depths)
        last = (lengths - 1).clamp(min=0)[:, None, None].expand(-1, -1, hidden.shape[2])
        return hidden.gather(1, last)[:, 0], LMState(stack, state.speech_depths)

    @torch.no_grad()
    def sample(
        self,
        hidden: Tensor,
        state: LMState,
        sampling: SamplingParams,
        forced_text: Tensor | None = None,
        allowed: Tensor | None = None,
        speaks: bool = True,
    ) -> SampledPatches:
        """Sample the next patch of each row, `[B, 1]`, from `hidden [B, D]`. It is not read yet; `prefill` does that.

        A row within speech (`LMState.speech_depth`) generates codes, unless its text token ends the speech.

        Args:
            hidden: The hidden state of each row's last patch.
            state: The state after it.
            sampling: Parameters of each row.
            forced_text: Text tokens `[B]` to use instead of sampled ones, `UNFORCED` where there is none.
            allowed: The text tokens that each row may sample, as bits `[B, W]` int32 (`lm.grammar`); None: all.
            speaks: False if no row is within speech. On a CPU this is seen from the state.
        """
        logits = self.text_logits(hidden)
        if allowed is not None:
            logits = logits.masked_fill(~unpack_bits(allowed, logits.shape[-1]), -torch.inf)
        sampler = Sampler(_text_sampling(self.config, sampling), state.position)
        text = sampler.sample(logits[:, None], 0)[:, 0]
        if forced_text is not None:
            text = torch.where(forced_text == UNFORCED, text, forced_text)
        speaking = (state.speech_depth != 0) & (text != self.prompt.special_ids.speech_end)
        silent, log_probs = _without_speech(self.config, text[:, None]), _log_probs(self.config, logits, text)
        if not speaks or (can_sync(speaking) and not bool(speaking.any())):
            return SampledPatches(silent, log_probs)
        codes = self.patch_decoder.sample(hidden, sampling, state.position)
        codes = torch.where(speaking[:, None, None, None], codes[:, None], silent.codes)
        return SampledPatches(silent._replace(codes=codes), log_probs)

    @torch.no_grad()
    def draft_and_verify(
        self,
        hidden: Tensor,
        state: LMState,
        active: Tensor,
        kv_length: int | None = None,
        max_tokens: int | None = None,
    ) -> VerifiedTokens:
        """Generate and read up to `1 + draft_tokens` text tokens in rows that are outside speech.

        The hidden state gives the first token, the draft head proposes the others, and one call of the backbone
        verifies them. The text equals that of greedy decoding token by token. Tokens after the start of speech or the
        end of the reply are dropped.

        Args:
            hidden: The hidden state of each row's last patch, `[B, D]`.
            state: The state after it. It needs room for all proposed tokens.
            active: The rows that write, `[B]`.
            kv_length: See `DecoderStack.forward`.
            max_tokens: Limit of tokens.

        Raises:
            UserError: If the model has no draft head.
        """
        if self.draft_head is None:
            raise UserError("this model has no draft head")
        ids, first = self.prompt.special_ids, self.text_logits(hidden)
        tokens, x = [first.argmax(-1)], hidden
        for _ in range(min(self.config.draft_tokens, (max_tokens or MAX_PATCHES) - 1)):
            x = self.draft_head(x, self.text_embedding(tokens[-1]))
            tokens.append(self.text_logits(x).argmax(-1))
        text = torch.stack(tokens, dim=1)
        patches = _without_speech(self.config, text)
        lengths = active.long() * text.shape[1]
        after, stack = self.backbone(self.embed(patches), state.stack, lengths, kv_length=kv_length)
        assert stack is not None
        continues = (text[:, :-1] != ids.speech_start) & ~ids.ends_reply(text[:, :-1])
        logits = torch.cat([first[:, None], self.text_logits(after[:, :-1])], dim=1)
        agrees = continues & (logits[:, 1:].argmax(-1) == text[:, 1:])
        counts = active.long() * (1 + agrees.long().cumprod(1).sum(1))
        self._note_depths(text, state)
        state = at_position(state, state.position + counts)
        return VerifiedTokens(patches, _log_probs(self.config, logits, text), counts, after, state)

    def _note_depths(self, text: Tensor, state: LMState) -> None:
        state.note_depths(text, self.prompt.special_ids.speech_start, self.prompt.special_ids.speech_end)

    def unquantized(self) -> dict[str, Tensor]:
        """See `nn.quantized.Quantizable`: the text embedding, if it is also the text head and that is not quantized."""
        is_left = self.text_head is None and self.tied_head is None
        return {"tied_head": self.text_embedding.weight} if is_left else {}

    def quantized(self) -> dict[str, QuantizedMatrix]:
        """See `nn.quantized.Quantizable`: the quantized text head, if the embedding is also the head."""
        return {} if self.tied_head is None else {"tied_head": self.tied_head}

    def set_quantized(self, name: str, matrix: QuantizedMatrix) -> None:
        """See `nn.quantized.Quantizable`. The embedding stays, because inputs read it."""
        self.tied_head = matrix

    def arrange(self) -> None:
        """See `nn.quantized.Quantizable`."""
        if self.tied_head is not None:
            self.packed = QuantizedKernel.from_matrix(self.tied_head)
            self.tied_head = self.packed.matrix

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
        patch_heads: int | None = None,
        quantization: Quantization | None = None,
    ) -> SpeechLM:
        """Load a built-in model, a folder that `save_pretrained` wrote, a released folder, or a Hugging Face id.

        Args:
            name: What to load.
            dtype: Precision of the weights. None means bfloat16 for a released folder, otherwise the stored one, but
                on a CPU float16 becomes float32.
            device: Where the weights go.
            patch_heads: Attention heads of a released model's patch decoder, which its files do not state.
            quantization: How to quantize matrices. None keeps them as they are, or as a quantized folder holds them.

        Raises:
            UserError: If it is absent, damaged or of an unknown layout.
        """
        return load(open_checkpoint(name, patch_heads), dtype, torch.device(device), quantization)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write `lm.json`, `lm.safetensors` (in `dtype` if given), `tokenizer.json`, and greetings if there are some.

        A quantized model is written with `quantization.json`, and must have been loaded on a CPU.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        configs.dump(self.config, folder / CONFIG_FILE)
        hub.write_atomically(folder / "tokenizer.json", lambda path: self.prompt.tokenizer.save(str(path)))
        save_greetings(folder, self.prompt.greetings)
        save_weights(self, folder, dtype)


def load(
    checkpoint: Checkpoint,
    dtype: torch.dtype | None = None,
    device: torch.device = CPU,
    quantization: Quantization | None = None,
    arrange: bool = True,
    greetings: Path | None = None,
) -> SpeechLM:
    """Load an opened checkpoint. Besides the final weights, at most one matrix is in memory.

    Args:
        checkpoint: What to load.
        dtype: See `SpeechLM.from_pretrained`, as for `device` and `quantization`.
        device: Where the weights go.
        quantization: How to quantize matrices.
        arrange: Whether to prepare quantized matrices for the device; otherwise the model can only be saved.
        greetings: A file of greetings, in place of that in the checkpoint's folder.

    Raises:
        UserError: If weights or greetings are damaged or do not fit, or are quantized in another way.
    """
    stored, folder = checkpoint.quantization, checkpoint.folder
    if stored is not None and quantization not in (None, stored):
        raise UserError(f"{folder}: already quantized to {stored.kind} in groups of {stored.group}")
    if stored is not None and dtype not in (None, checkpoint.dtype(None, device)):
        raise UserError(f"{folder}: quantized, and computes in {str(checkpoint.dtype(None, device))[6:]} only")
    if quantization is not None and dtype not in (None, torch.bfloat16):
        raise UserError("a quantized model computes in bfloat16, for which its kernels are made; leave out the dtype")
    final = checkpoint.dtype(dtype, device) if quantization is None else torch.bfloat16
    # A CPU provides memory only when it is written, so matrices that are quantized pass through it one by one.
    with uninitialized(device if (stored or quantization) is None else CPU, final):
        model = SpeechLM(checkpoint.config, hub.load_tokenizer(folder))
    model.prompt.greetings = model_greetings(folder, model.prompt, checkpoint.released, greetings)
    read_weights(model, checkpoint, device, quantization)
    model.to(device)
    for _, module in quantizable(model) if arrange else ():
        module.arrange()
    return model.eval()


def _without_speech(config: LMConfig, text: Tensor) -> Patches:
    """Return patches of text tokens `[B, P]` without speech."""
    codes = torch.full((*text.shape, config.patch_frames, config.codebooks), config.no_speech, device=text.device)
    return Patches(text, codes)


def _log_probs(config: LMConfig, logits: Tensor, text: Tensor) -> Tensor:
    """Return the log-probabilities of tokens `[...]` float32, or 0 if no answer depends on them."""
    if config.prompt.min_confidence is None:
        return torch.zeros(text.shape, device=text.device)
    return -F.cross_entropy(logits.float().flatten(0, -2), text.flatten(), reduction="none").view(text.shape)


def _text_sampling(config: LMConfig, sampling: SamplingParams) -> SamplingParams:
    """Return the parameters for text, which is greedy with chain of modality, where only speech is sampled."""
    if not config.prompt.chain_of_modality:
        return sampling
    return sampling._replace(temperature=torch.zeros_like(sampling.temperature))


def initialize(model: nn.Module, std: float = 0.02) -> None:
    """Draw normal weights and set biases to zero. The last matrix of a chain and of a draft head starts at zero."""
    for name, parameter in model.named_parameters():
        if "norm" in name:
            nn.init.ones_(parameter)
        elif name.endswith("bias") or ".chain.out." in name or "draft_head.out." in name:
            nn.init.zeros_(parameter)
        else:
            nn.init.normal_(parameter, std=std)
