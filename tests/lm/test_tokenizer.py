"""The small tokenizer."""

from __future__ import annotations

import pytest

from speechgpt2.lm.config import PromptConfig
from speechgpt2.lm.tokenizer import special_tokens, train_tokenizer
from tests.lm.tiny import TEXTS, tiny_tokenizer


@pytest.mark.parametrize("text", [*TEXTS, "ünknown 𠀀 words\r\n\t 12.5 ¿", "<|im_end|>", "  two  blanks "])
def test_any_text_round_trips(text):
    tokenizer = tiny_tokenizer()
    tokenizer.encode_special_tokens = True
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_special_tokens_come_first_and_are_whole():
    tokenizer = tiny_tokenizer()
    wanted = ["<|endoftext|>", *special_tokens(PromptConfig(chain_of_modality=True))]
    assert [tokenizer.id_to_token(i) for i in range(7)] == wanted
    assert tokenizer.encode("<|sosp|>").ids == [tokenizer.token_to_id("<|sosp|>")]


def test_words_keep_their_leading_blank_and_case():
    tokenizer = train_tokenizer(["the cat and The cat"] * 20, 400)
    assert tokenizer.encode("the cat and The").tokens == ["the", "Ġcat", "Ġand", "ĠThe"]


def test_chinese_is_split_into_characters():
    tokenizer = train_tokenizer(["你好，今天天气怎么样"] * 50, 400)
    assert len(tokenizer.encode("今天天气").ids) == 4


def test_digits_are_single():
    tokenizer = train_tokenizer(["it is 25 or 25"] * 50, 400)
    assert [tokenizer.decode([i]) for i in tokenizer.encode(" 25").ids] == [" 2", "5"]


def test_training_is_deterministic_and_bounded():
    a, b = (train_tokenizer(TEXTS, 300) for _ in range(2))
    assert a.to_str() == b.to_str() and a.get_vocab_size() <= 300
