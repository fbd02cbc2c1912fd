"""Configuration of the language model: backbone, patch decoder and prompt.

Defaults are those of the released model where it has them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from speechgpt2.errors import UserError
from speechgpt2.types import FRAME_SIZE, PATCH_FRAMES, SAMPLE_RATE


@dataclass(frozen=True)
class Llama3RopeScaling:
    """Rotary frequencies of Llama 3.1: low frequencies are divided by `factor`, high ones are kept, others blended.

    Source: Grattafiori et al., The Llama 3 Herd of Models, 2024 (https://arxiv.org/abs/2407.21783). The field names are
    those of `rope_scaling` in a Hugging Face `config.json`.
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclass(frozen=True, kw_only=True)
class StackOptions:
    """Options that decoder stacks of different model families set differently."""

    rope_theta: float = 1_000_000.0
    rope_scaling: Llama3RopeScaling | None = None
    norm_eps: float = 1e-6
    attention_bias: bool = True  # on queries, keys and values
    qk_norm: bool = False  # RMSNorm of each head's queries and keys, before the rotation
    head_size: int | None = None  # None: width / heads


@dataclass(frozen=True)
class BackboneConfig(StackOptions):
    """A decoder-only transformer with grouped-query attention, such as Qwen2.

    `vocab` counts text tokens and `width` is D. `heads` query heads share `kv_heads` key-value heads. With
    `tied_embeddings` the text head is the text embedding.
    """

    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    tied_embeddings: bool = False

    def __post_init__(self) -> None:
        _check_heads("backbone", self.width, self.heads, self.kv_heads, self.head_size)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.head_size or self.width // self.heads


@dataclass(frozen=True)
class PatchDecoderConfig(StackOptions):
    """The small transformer that generates the frames of one patch, with as many key-value heads as query heads.

    `chained`: the codes of a frame are sampled one after the other, each given those before it. The released model
    samples them independently; a small model is better with the chain.
    """

    width: int
    layers: int
    heads: int
    ffn: int
    chained: bool = False

    def __post_init__(self) -> None:
        _check_heads("patch decoder", self.width, self.heads, self.heads, self.head_size)

    @property
    def kv_heads(self) -> int:
        """Number of key-value heads: that of the query heads."""
        return self.heads

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.head_size or self.width // self.heads


@dataclass(frozen=True)
class PromptConfig:
    """The chat template: texts and special tokens that turn a conversation into patches (lm/prompt.py).

    `chain_of_modality`: a reply is a transcript of the user's speech, then the answer as text, then as speech
    (SpeechGPT, Zhang et al., 2023, https://arxiv.org/abs/2305.11000). `tools`: the model was trained to call tools
    (lm/tools.py); otherwise its prompt lists none. `transcribes`: it was trained to transcribe where the system text
    asks for it (`Prompt.transcription_system`); with chain of modality it always can. `follows_instructions`: a style
    is put into the system text as words; otherwise the speech of the model is changed (dsp/delivery.py). In `system`,
    {input} and {output} stand for "speech" or "text", the modality of the user and of the model. `min_confidence`:
    below this confidence in its transcript (a log-probability, lm/transcript_reader.py) the model says that it did not
    understand.
    """

    chain_of_modality: bool = False
    tools: bool = False
    transcribes: bool = False
    follows_instructions: bool = False
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
    silence: tuple[int, ...] = (688, 131, 226)  # codes of a silent frame, one per codebook
    silence_frames: int = 8  # follow the user's speech, before the patch is filled
    min_confidence: float | None = None

    def __post_init__(self) -> None:
        if self.min_confidence is not None and not self.min_confidence <= 0:
            raise UserError("min_confidence must be a log-probability, at most 0")


@dataclass(frozen=True)
class SamplingConfig:
    """How replies are sampled where nothing else is asked for (lm/sampling.py). The defaults are the released ones."""

    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 0.9

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and self.top_k >= 0 and 0 <= self.top_p <= 1):
            raise UserError("sampling: temperature and top_k must not be negative, top_p must be in 0…1")


@dataclass(frozen=True)
class LMConfig:
    """The whole language model.

    A position holds a text token and `patch_frames` (G) frames of `codebooks` (K) codes below `codebook_size` (V).
    `draft_tokens`: text tokens that the draft head proposes per step (lm/draft_head.py), 0 without a draft head.
    """

    backbone: BackboneConfig
    patch_decoder: PatchDecoderConfig
    prompt: PromptConfig = field(default_factory=PromptConfig)
    patch_frames: int = PATCH_FRAMES
    codebooks: int = 3
    codebook_size: int = 1024
    draft_tokens: int = 0
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        if self.draft_tokens < 0 or (self.draft_tokens and not self.prompt.chain_of_modality):
            raise UserError("draft_tokens needs a model with chain_of_modality, whose text is greedy")
        silence = self.prompt.silence
        if len(silence) != self.codebooks or not all(0 <= code < self.codebook_size for code in silence):
            raise UserError(f"silence {silence} must be {self.codebooks} codes in 0…{self.codebook_size - 1}")

    @property
    def no_speech(self) -> int:
        """The code of a position without speech: one past the codebook, the last row of every code embedding."""
        return self.codebook_size

    @property
    def patch_samples(self) -> int:
        """Samples of speech in a patch, at 24 kHz."""
        return self.patch_frames * FRAME_SIZE

    @property
    def patch_seconds(self) -> float:
        """Seconds of speech in a patch."""
        return self.patch_samples / SAMPLE_RATE


def released() -> LMConfig:
    """Return the sizes of SpeechGPT-2.0-preview-7B, 7.75 G parameters. Its text model knew tools and instructions."""
    return LMConfig(
        BackboneConfig(vocab=152_064, width=3584, layers=28, heads=28, kv_heads=4, ffn=18_944),
        PatchDecoderConfig(width=1024, layers=8, heads=16, ffn=4096),
        PromptConfig(tools=True, follows_instructions=True),
    )


def _check_heads(name: str, width: int, heads: int, kv_heads: int, head_size: int | None) -> None:
    if min(heads, kv_heads) < 1 or (head_size is None and width % heads):
        raise UserError(f"{name}: width {width} must divide into {heads} heads")
    if (head_size or width // heads) % 2:
        raise UserError(f"{name}: the heads need an even size, for the rotary embedding")
    if heads % kv_heads:
        raise UserError(f"{name}: {heads} heads must share {kv_heads} key-value heads evenly")
