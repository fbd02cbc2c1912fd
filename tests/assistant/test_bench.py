"""The benchmark of the knowledge base, on few documents."""

import random

import numpy as np
import yaml

from tests import needs

needs.module("jieba", "assistant")

from speechgpt2.assistant.embeddings import EMBEDDERS
from speechgpt2.bench.knowledge import TEXTS, make_distractors, measure, write_documents


def test_questions_find_their_documents_among_distractors(tmp_path):
    texts = {language: entries[:6] for language, entries in yaml.safe_load(TEXTS.read_text(encoding="utf-8")).items()}
    write_documents(tmp_path / "docs", texts, 40, random.Random(0))
    index, look_ups, recall = measure(tmp_path / "docs", tmp_path / "kb.sqlite", texts)
    assert index.documents == 40 and [row.by for row in look_ups] == ["words"] and look_ups[0].median_ms > 0
    assert [(row.language, row.questions) for row in recall] == [("English", 12), ("Mandarin", 12)]
    assert all(0.5 < row.first <= row.recall <= 1 for row in recall)


class Length:
    """An embedder of no use: a text's direction is its length."""

    name = fingerprint = "length@1"

    def embed(self, texts, questions=False):
        return np.array([[len(text), 1] for text in texts], np.float32)


def test_questions_are_asked_again_by_meaning(tmp_path, monkeypatch):
    monkeypatch.setitem(EMBEDDERS, "length", lambda _: Length())
    texts = {"en": yaml.safe_load(TEXTS.read_text(encoding="utf-8"))["en"][:3]}
    write_documents(tmp_path / "docs", texts, 10, random.Random(0))
    _, look_ups, recall = measure(tmp_path / "docs", tmp_path / "kb.sqlite", texts, "length@1")
    assert [(row.by, row.embedding_seconds is None) for row in look_ups] == [
        ("words", True),
        ("words and meaning", False),
    ]
    assert look_ups[1].megabytes >= look_ups[0].megabytes and recall[1].recall <= recall[0].recall


def test_every_document_has_questions():
    for entries in yaml.safe_load(TEXTS.read_text(encoding="utf-8")).values():
        assert all(set(entry) == {"text", "questions"} and len(entry["questions"]) == 2 for entry in entries)


def test_distractors_hold_the_words_of_the_documents():
    english = next(make_distractors([{"text": "green tea"}], random.Random(0)))
    assert set(english.replace(".", " ").split()) == {"green", "tea"}
    assert set(next(make_distractors([{"text": "红茶"}], random.Random(0)))) == set("红茶。")
