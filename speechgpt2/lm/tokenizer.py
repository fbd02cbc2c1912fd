"""A small tokenizer for a small model, and the special tokens that any tokenizer needs."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from speechgpt2.lm.alignment import IDEOGRAPH
from speechgpt2.lm.config import PromptConfig

# The tail after an apostrophe; a word, or a single digit, with its leading blank; punctuation with its line breaks;
# white space.
WORDS = (
    r"'(?:s|t|re|ve|m|ll|d)\b| ?[a-zA-Z\u00c0-\u024f]+| ?\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+|\p{L}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train byte-level BPE on `texts`, so that any text can be encoded.

    Chinese is split into characters. English words keep their leading blank.

    Args:
        texts: The corpus.
        vocab_size: Tokens in all, with the 256 bytes and the special tokens.
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
        special_tokens=["<|endoftext|>", *special_tokens(PromptConfig(chain_of_modality=True))],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def special_tokens(prompt: PromptConfig) -> list[str]:
    """Return the special tokens that a tokenizer needs for `prompt`, in the order of `prompt.SpecialTokenIds`."""
    tokens = [prompt.eos, prompt.speech_start, prompt.speech_end, prompt.filler, prompt.last_filler]
    return [*tokens, prompt.transcript_end] if prompt.chain_of_modality else tokens
