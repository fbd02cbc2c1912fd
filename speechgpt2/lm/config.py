"""What a language model is made of: backbone, patch decoder, prompt; the defaults are the released ones where they
exist.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from speechgpt2.errors import UserError
from speechgpt2.types import FRAME_SIZE, SAMPLE_RATE


@dataclass(frozen=True)
class BackboneConfig:
    """A Qwen2 decoder: `vocab` text tokens, `width` D, `heads` query heads that share `kv_heads` key-value heads."""

    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    rope_base: float = 1_000_000.0
    norm_eps: float = 1e-6
    tied_head: bool = False  # the text head is the text embedding

    def __post_init__(self) -> None:
        _check_heads("backbone", self.width, self.heads, self.kv_heads)

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True)
class PatchDecoderConfig:
    """The small decoder that writes the frames of one patch; as many key-value heads as heads.

    `chained`: the codes of one frame are drawn one after the other, each seeing those before it. The released model
    draws them independently; a small model gains from the chain.
    """

    width: int
    layers: int
    heads: int
    ffn: int
    rope_base: float = 1_000_000.0
    norm_eps: float = 1e-6
    chained: bool = False

    def __post_init__(self) -> None:
        _check_heads("patch decoder", self.width, self.heads, self.heads)

    @property
    def kv_heads(self) -> int:
        return self.heads

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True)
class PromptConfig:
    """The words and special tokens that turn a dialogue into patches.

    `chain_of_modality`: a reply is a transcript of the user's speech, then the answer as text, then as speech
    (Zhang et al., SpeechGPT, 2023; see lm/prompt.py). In `system`, {input} and {output} become "speech" or "text".
    `tools`: the model can call tools (see lm/tools.py); the prompt of another model never lists any.
    """

    chain_of_modality: bool = False
    tools: bool = False
    system: str = "You are an helpful assistant. You should answer the user's {input} questions in {output}.\n\n\n"
    user: str = "[|Human|]: "
    assistant: str = "[|SpeechGPT|]: "
    turn_end: str = " ###\n"
    eos: str = "<|im_end|>"
    speech_start: str = "<|sosp|>"
    speech_end: str = "<|eosp|>"
    filler: str = "<|empty|>"
    last_filler: str = "<|end_empty|>"
    transcript_end: str = "<|heard|>"
    silence: tuple[int, ...] = (688, 131, 226)  # the frame of silence, one code per codebook
    silence_frames: int = 8  # after the user's speech, before the patch is filled


@dataclass(frozen=True)
class LMConfig:
    """The whole model. A position is a text token and `patch_frames` G frames of `codebooks` K codes below
    `codebook_size` V. `draft_tokens`: text tokens that the draft head proposes per step (lm/draft_head.py).
    """

    backbone: BackboneConfig
    patch_decoder: PatchDecoderConfig
    prompt: PromptConfig = field(default_factory=PromptConfig)
    patch_frames: int = 3
    codebooks: int = 3
    codebook_size: int = 1024
    draft_tokens: int = 0

    def __post_init__(self) -> None:
        if self.draft_tokens < 0 or (self.draft_tokens and not self.prompt.chain_of_modality):
            raise UserError("draft_tokens needs a model with chain_of_modality, whose text is greedy")
        silence = self.prompt.silence
        if len(silence) != self.codebooks or not all(0 <= code < self.codebook_size for code in silence):
            raise UserError(f"silence {silence} must be {self.codebooks} codes in 0…{self.codebook_size - 1}")

    @property
    def no_speech(self) -> int:
        """The code that says "no speech here", one past the codebook: the last row of every code embedding table."""
        return self.codebook_size

    @property
    def patch_samples(self) -> int:
        """Samples of speech in a patch, at 24 kHz."""
        return self.patch_frames * FRAME_SIZE

    @property
    def patch_seconds(self) -> float:
        """Seconds of speech in a patch."""
        return self.patch_samples / SAMPLE_RATE


def _check_heads(name: str, width: int, heads: int, kv_heads: int) -> None:
    if min(heads, kv_heads) < 1 or width % heads or width // heads % 2:
        raise UserError(f"{name}: width {width} must divide into {heads} heads of even size")
    if heads % kv_heads:
        raise UserError(f"{name}: {heads} heads must share {kv_heads} key-value heads evenly")
