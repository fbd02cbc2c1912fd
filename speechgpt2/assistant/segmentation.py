"""Texts as search terms: jieba splits Chinese into words, SQLite's tokenizer splits other text.

The same function prepares documents and queries, so that both have the same words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from speechgpt2.extras import require
from speechgpt2.languages import HAN

CHINESE_RUN = re.compile(f"[{HAN}]+")
WORD = re.compile(r"[\w]+")
# Frequent words, which do not help to find a document.
STOP = """
a about an and any are as at be by can could did do does for from had has have how i if in into is it its may me my of
on or our s should so t than that the their them there they this to was we were what when where which who why will with
would you your
的 了 吗 呢 吧 啊 是 在 有 和 与 或 我 你 他 她 它 我们 你们 他们 这 那 这个 那个 什么 怎么 怎样 怎么样 如何
哪 哪里 哪个 哪些 谁 多少 几 为什么 可以 能 会 要 请 问 请问 一个 也 都 就 把 被 从 到 对 给 上 下 里 时候 需要 应该
"""
STOP_WORDS = frozenset(STOP.split())


def index_text(text: str) -> str:
    """Return a document's text for the index: words separated by blanks."""
    return CHINESE_RUN.sub(lambda run: f" {' '.join(_chinese_words(run[0]))} ", text)


def query_terms(query: str) -> list[str]:
    """Return the words of a query in order, each once, without stop words if there are other words."""
    words = list(dict.fromkeys(word.lower() for word in WORD.findall(index_text(query))))
    return [word for word in words if word not in STOP_WORDS] or words


def _chinese_words(run: str) -> Iterator[str]:
    """Words of a run of Chinese characters; of a long word also its parts, as search engines need them."""
    return _jieba().cut_for_search(run)


@cache
def _jieba() -> Any:
    jieba = require("jieba", "assistant")
    jieba.setLogLevel("WARNING")
    jieba.initialize()  # reads its dictionary, once
    return jieba
