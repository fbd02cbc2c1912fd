"""Alignment of words and speech: which text token belongs to which patch.

The text stream of the model's speech holds the words. The tokens of a word take one patch each, from the patch in which
the word begins; Chinese is tokenised by character, and punctuation follows its word. If the next word begins before all
tokens are placed, its tokens wait. All other patches hold filler. The last filler before the next words, or before the
end, is a special token.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import pairwise

TimedWord = tuple[str, float, float]  # a word, its start and its end in seconds

IDEOGRAPH = "\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff"  # Chinese characters and their punctuation
PIECES = re.compile(f"[{IDEOGRAPH}]|[^{IDEOGRAPH}]+")


def split_for_tokenizer(text: str) -> list[str]:
    """Split a word into parts that are tokenised separately: each Chinese character, and the text between them."""
    return PIECES.findall(text)


def align_tokens(words: Iterable[tuple[int, Sequence[int]]], patches: int, filler: int, last_filler: int) -> list[int]:
    """Lay out tokens, one per patch.

    Args:
        words: The patch at which each word begins and its tokens, in order.
        patches: Number of patches.
        filler: The token where no word stands.
        last_filler: The token that ends a run of filler after words.

    Returns:
        At least `patches` tokens, and more if the words do not fit.
    """
    pending, queue, tokens = deque(words), deque[int](), list[int]()
    while len(tokens) < patches or queue or pending:
        while pending and pending[0][0] <= len(tokens):
            queue.extend(pending.popleft()[1])
        tokens.append(queue.popleft() if queue else filler)
    for i in range(1, len(tokens)):
        run_ends = tokens[i] == filler and (i + 1 == len(tokens) or tokens[i + 1] != filler)
        if run_ends and any(token != filler for token in tokens[:i]):
            tokens[i] = last_filler
    return tokens


def restore_spacing(words: Sequence[TimedWord], text: str | None = None) -> list[str]:
    """Return the words with the blanks and the punctuation of `text`. Joined, they are `text`.

    Without `text`, or if it does not contain the words (a number is written in digits), a blank separates two words
    that are not Chinese.
    """
    spans = _locate([word for word, *_ in words], text) if text else None
    if spans is None or text is None:
        return [_blank(words[i - 1][0] if i else "", word) + word for i, (word, *_) in enumerate(words)]
    cuts = [0]
    for (_, end), (begin, _) in pairwise(spans):
        gap = text[end:begin]  # up to its first blank it belongs to the word before
        cuts.append(end + len(gap) - len(re.sub(r"^\S*", "", gap)))
    cuts.append(len(text.rstrip()))
    return [text[a:b] for a, b in pairwise(cuts)]


def _locate(words: list[str], text: str) -> list[tuple[int, int]] | None:
    """Return the place of each word in the text; None if a word is missing or the text has further words."""
    spans, cursor, lower = [], 0, text.lower()
    for word in words:
        begin = lower.find(word.strip().lower(), cursor)
        if begin < 0 or re.search(r"\w", text[cursor:begin]):
            return None
        cursor = begin + len(word.strip())
        spans.append((begin, cursor))
    return None if re.search(r"\w", text[cursor:]) else spans


def _blank(before: str, word: str) -> str:
    chinese = re.compile(f"[{IDEOGRAPH}]")
    joined = not before or not word or word[0].isspace() or before[-1].isspace()
    return "" if joined or chinese.match(before[-1]) or chinese.match(word[0]) else " "
