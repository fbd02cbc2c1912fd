"""How fast is a knowledge base, and does it find the right document?

    sg2 bench kb --documents 10000 --embedder model2vec@FOLDER

Distractors are texts of the same words in random order, so every word of a question occurs in many of them. Recall@3
is the fraction of questions whose document is among the first three.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from speechgpt2.assistant.knowledge import KnowledgeBase
from speechgpt2.assistant.segmentation import CHINESE_RUN, index_text
from speechgpt2.bench.machine import open_console
from speechgpt2.eval import report
from speechgpt2.eval.report import column
from speechgpt2.languages import NAMES

TEXTS = Path(__file__).with_name("knowledge.yaml")
K = 3
SENTENCES = (2, 5)  # of a distractor
WORDS = (6, 14)  # of a sentence


@dataclass(frozen=True)
class IndexSpeed:
    """Indexing by words."""

    documents: int = column("documents", ",d")
    index_seconds: float = column("indexing s", ".1f")
    index_cpu_seconds: float = column("CPU s", ".1f")
    unchanged_seconds: float = column("again, unchanged s", ".1f")


@dataclass(frozen=True)
class LookUpSpeed:
    """Look-up, and embedding where documents are also found by meaning."""

    by: str = column("search by")
    embedding_seconds: float | None = column("embedding s", ".1f")
    megabytes: float = column("MB", ".1f")
    median_ms: float = column("look-up ms, median", ".2f")
    median_cpu_ms: float = column("CPU ms, median", ".2f")
    p95_ms: float = column("95 %", ".2f")


@dataclass(frozen=True)
class KnowledgeRecall:
    """How many questions found their document."""

    by: str = column("search by")
    language: str = column("questions")
    questions: int = column("number", "d")
    first: float = column("recall@1", ".3f")
    recall: float = column(f"recall@{K}", ".3f")


def main(documents: int, embedder: str | None = None, seed: int = 0, out: Path | None = None) -> None:
    """Print how fast an index of `documents` small files is and what it finds, also by meaning with an embedder."""
    console = open_console()
    texts = yaml.safe_load(TEXTS.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder, "documents")
        write_documents(files, texts, documents, random.Random(seed))
        index, look_ups, recall = measure(files, Path(folder, "knowledge.sqlite"), texts, embedder)
    tables: dict[str, list[Any]] = {
        "Knowledge base: index": [index],
        "Knowledge base: look-up": look_ups,
        "Knowledge base: questions in other words than the documents'": recall,
    }
    report.publish(tables, console, out)


def write_documents(folder: Path, texts: dict[str, Any], count: int, rng: random.Random) -> None:
    """Write the documents that the questions ask for, and distractors up to `count` files."""
    folder.mkdir()
    written = 0
    for language, entries in texts.items():
        for number, entry in enumerate(entries):
            (folder / f"{language}-{number}.txt").write_text(entry["text"], encoding="utf-8")
            written += 1
    distractors = [make_distractors(entries, rng) for entries in texts.values()]
    for number in range(max(0, count - written)):
        text = next(distractors[number % len(distractors)])
        (folder / f"distractor-{number}.txt").write_text(text, encoding="utf-8")


def make_distractors(entries: list[dict[str, Any]], rng: random.Random) -> Iterator[str]:
    """Sentences of random words of the documents, each word as frequent as there."""
    words = [word for entry in entries for word in index_text(entry["text"]).replace(".", " ").split()]
    while True:
        sentences = []
        for _ in range(rng.randint(*SENTENCES)):
            sentence = rng.choices(words, k=rng.randint(*WORDS))
            chinese = CHINESE_RUN.search("".join(sentence))
            sentences.append("".join(sentence) + "。" if chinese else " ".join(sentence) + ". ")
        yield "".join(sentences)


def measure(
    files: Path, database: Path, texts: dict[str, Any], embedder: str | None = None
) -> tuple[IndexSpeed, list[LookUpSpeed], list[KnowledgeRecall]]:
    """Index a folder and ask all questions: by words, then also by meaning if there is an embedder."""
    index_text("预热")  # the dictionary is read once per process
    with KnowledgeBase(database, create=True) as base:
        start, cpu = time.perf_counter(), time.process_time()
        count = sum(1 for _ in base.add([files]))
        indexed, cpu_indexed = time.perf_counter() - start, time.process_time() - cpu
        start = time.perf_counter()
        changed = [outcome for outcome in base.add([files]) if outcome.status != "unchanged"]
        again = time.perf_counter() - start
        if changed:
            raise RuntimeError(f"{len(changed)} unchanged files were indexed again")
    index = IndexSpeed(count, indexed, cpu_indexed, again)
    asked = [_ask(database, texts)]
    if embedder is not None:
        asked.append(_ask(database, texts, embedder))
    return index, [speed for speed, _ in asked], [row for _, recall in asked for row in recall]


def _ask(
    database: Path, texts: dict[str, Any], embedder: str | None = None
) -> tuple[LookUpSpeed, list[KnowledgeRecall]]:
    """Ask all questions, by words and, with an embedder, by meaning."""
    by, embedding_seconds = "words" if embedder is None else "words and meaning", None
    seconds, cpu_seconds, recall = [], [], []
    with KnowledgeBase(database) as base:
        if embedder is not None:
            start = time.perf_counter()
            base.embed(embedder)
            embedding_seconds = time.perf_counter() - start
        base.search("预热", K)  # vectors are read once
        for language, entries in texts.items():
            ranks = []
            for number, entry in enumerate(entries):
                for question in entry["questions"]:
                    start, cpu = time.perf_counter(), time.process_time()
                    found = [Path(passage.source).name for passage in base.search(question, K)]
                    seconds.append(time.perf_counter() - start)
                    cpu_seconds.append(time.process_time() - cpu)
                    ranks.append(found.index(name) if (name := f"{language}-{number}.txt") in found else K)
            recall.append(_recall(by, language, ranks))
    median, median_cpu = (1000 * statistics.median(times) for times in (seconds, cpu_seconds))
    p95, megabytes = 1000 * statistics.quantiles(seconds, n=20)[-1], database.stat().st_size / 1e6
    return LookUpSpeed(by, embedding_seconds, megabytes, median, median_cpu, p95), recall


def _recall(by: str, language: str, ranks: list[int]) -> KnowledgeRecall:
    first, found = (sum(rank < k for rank in ranks) / len(ranks) for k in (1, K))
    name = NAMES.get(language, language)
    return KnowledgeRecall(by, name, len(ranks), first, found)
