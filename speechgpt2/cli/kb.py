"""`sg2 kb`: a knowledge base of documents that the assistant can search."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from speechgpt2.cli.common import print_table
from speechgpt2.errors import UserError

Database = Annotated[Path, typer.Option("--db", help="The knowledge base, an SQLite file.", metavar="FILE")]
DEFAULT = Path("knowledge.sqlite")


def add(
    paths: Annotated[
        list[Path], typer.Argument(help="Files, and folders that are searched for documents.", metavar="PATH...")
    ],
    db: Database = DEFAULT,
    max_mb: Annotated[float, typer.Option(min=0.001, help="Files of more megabytes are skipped.")] = 20.0,
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove documents below the given folders whose files no longer exist.")
    ] = False,
) -> None:
    """Add text, Markdown, HTML and PDF files. Changed files are replaced, unchanged files are left alone."""
    from speechgpt2.assistant.documents import find_files
    from speechgpt2.assistant.knowledge import KnowledgeBase

    files = [file for path in paths for file in find_files(path)]  # fails if a path does not exist
    if not files:
        raise UserError("no documents: the folders have no text, Markdown, HTML or PDF files")
    counts: Counter[str] = Counter()
    skipped = []
    with KnowledgeBase(db, create=True) as base:
        for outcome in base.add(paths, int(max_mb * 1e6), prune):
            counts[outcome.status] += 1
            if outcome.status == "skipped":
                skipped.append(outcome.reason)
            elif outcome.status != "unchanged":
                print(f"{outcome.status}: {outcome.source}")
    if len(skipped) == counts.total() == 1:
        raise UserError(skipped[0])
    for reason in skipped:
        print("skipped:", reason, file=sys.stderr)
    print(", ".join(f"{count} {status}" for status, count in sorted(counts.items())))
    if len(skipped) == counts.total():
        raise UserError("no file could be read")


def show_list(db: Database = DEFAULT) -> None:
    """List the documents: number of pieces, size, title, file."""
    from speechgpt2.assistant.knowledge import KnowledgeBase

    with KnowledgeBase(db) as base:
        rows = [(str(d.pieces), str(d.bytes), d.title, str(d.source)) for d in base.documents()]
    print_table(("pieces", "bytes", "title", "file"), rows)


def search(
    query: Annotated[str, typer.Argument(help="A question, or words.", metavar="QUERY")],
    db: Database = DEFAULT,
    results: Annotated[int, typer.Option("--results", "-k", min=1, max=50, help="Number of passages.")] = 3,
) -> None:
    """Print the passages that match a question best, with their sources."""
    from speechgpt2.assistant.knowledge import KnowledgeBase

    with KnowledgeBase(db) as base:
        passages = base.search(query, results)
    if not passages:
        print("no passage matches", file=sys.stderr)
    for number, passage in enumerate(passages, 1):
        location = f", {passage.location}" if passage.location else ""
        print(f"{number}. {passage.source}{location} (score {passage.score:.3g})\n   {' '.join(passage.text.split())}")


def embed(
    embedder: Annotated[
        str,
        typer.Argument(
            help="model2vec@FOLDER, sentence-transformers@FOLDER, or none to search by words only.", metavar="EMBEDDER"
        ),
    ],
    db: Database = DEFAULT,
) -> None:
    """Have documents found by their meaning, too, with an embedder of this machine."""
    from speechgpt2.assistant.knowledge import KnowledgeBase

    with KnowledgeBase(db) as base:
        count = base.embed(None if embedder == "none" else embedder)
        print(f"{count} pieces embedded" if base.embedder else "documents are found by their words only")


def remove(
    paths: Annotated[
        list[Path], typer.Argument(help="Files and folders whose documents are removed.", metavar="PATH...")
    ],
    db: Database = DEFAULT,
) -> None:
    """Remove documents from the knowledge base; the files themselves stay."""
    from speechgpt2.assistant.knowledge import KnowledgeBase

    with KnowledgeBase(db) as base:
        for path in paths:
            for source in base.remove(path):
                print(f"removed: {source}")


def info(db: Database = DEFAULT) -> None:
    """Print the number of documents and pieces, and the size of the file."""
    from speechgpt2.assistant.knowledge import KnowledgeBase
    from speechgpt2.assistant.knowledge_file import VERSION

    with KnowledgeBase(db) as base:
        documents, pieces = base.counts()
        embedder = f", embedded by {base.embedder}" if base.embedder else ""
    size = f"{db.stat().st_size / 1e6:.1f} MB"
    print(f"{db}: version {VERSION}, {documents} documents, {pieces} pieces, {size}{embedder}")
