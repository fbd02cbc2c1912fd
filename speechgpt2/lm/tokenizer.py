"""A small tokenizer for a small model."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from speechgpt2.lm.alignment import IDEOGRAPH
from speechgpt2.lm.config import PromptConfig

# An apostrophe's tail, a word with its leading blank, single digits likewise, punctuation with its newlines, blanks.
WORDS = (
    r"'(?:s|t|re|ve|m|ll|d)\b| ?[a-zA-Z\u00c0-\u024f]+| ?\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+|\p{L}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE: any text can be written; Chinese is one character at a time, English words keep their leading
    blank.

    `vocab_size` counts the 256 bytes and the special tokens of `PromptConfig`.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(f"[{IDEOGRAPH}]"), "isolated"),
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special_tokens(),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def special_tokens() -> list[str]:
    """What a tokenizer of ours must know besides words."""
    p = PromptConfig()
    return ["<|endoftext|>", p.eos, p.speech_start, p.speech_end, p.filler, p.last_filler, p.transcript_end]
