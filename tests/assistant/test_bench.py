"""The benchmark of the knowledge base, on few documents."""

import random

import yaml

from tests import needs

needs.module("jieba", "assistant")

from speechgpt2.bench.knowledge import TEXTS, make_distractors, measure, write_documents


def test_questions_find_their_documents_among_distractors(tmp_path):
    texts = {language: entries[:6] for language, entries in yaml.safe_load(TEXTS.read_text(encoding="utf-8")).items()}
    write_documents(tmp_path / "docs", texts, 40, random.Random(0))
    speed, recall = measure(tmp_path / "docs", tmp_path / "kb.sqlite", texts)
    assert speed.documents == 40 and speed.median_ms > 0
    assert [(row.language, row.questions) for row in recall] == [("English", 12), ("Mandarin", 12)]
    assert all(0.5 < row.first <= row.recall <= 1 for row in recall)


def test_every_document_has_questions():
    for entries in yaml.safe_load(TEXTS.read_text(encoding="utf-8")).values():
        assert all(set(entry) == {"text", "questions"} and len(entry["questions"]) == 2 for entry in entries)


def test_distractors_hold_the_words_of_the_documents():
    english = next(make_distractors([{"text": "green tea"}], random.Random(0)))
    assert set(english.replace(".", " ").split()) == {"green", "tea"}
    assert set(next(make_distractors([{"text": "红茶"}], random.Random(0)))) == set("红茶。")
