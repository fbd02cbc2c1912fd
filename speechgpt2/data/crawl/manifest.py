"""The records of a crawl, written from the frontier: what is kept, and what is not and why.

A record is built from everything that all sources say of an item, so the order in which they were found leaves no
trace in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from speechgpt2.data.crawl.frontier import RECORDINGS, Frontier, Item
from speechgpt2.data.crawl.licence import ITEM, Statement, strongest
from speechgpt2.data.crawl.store import Store
from speechgpt2.hub import write_atomically

KEPT, REJECTED = "manifest.jsonl", "rejected.jsonl"
STAGE, STAGE_VERSION = "crawl", 1


def statements(frontier: Frontier, item: Item, video: str = "") -> list[Statement]:
    """What each source that led to an item says of its licence, and what a `video` says itself."""
    own = video or (item.outcome.get("video") or {}).get("licence", "")
    found = [Statement(facts.get("licence", ""), facts.get("level", 0)) for facts in frontier.facts(item.id)]
    return [*found, Statement(own, ITEM)] if own else found


def write(store: Store, frontier: Frontier) -> None:
    """Write both manifests into the crawl's folder, in the order of the items' ids."""
    kinds = ", ".join(f"'{kind}'" for kind in RECORDINGS)
    kept = (record_of(item, frontier, store) for item in frontier.items(f"state = 'done' AND kind IN ({kinds})"))
    refused = (refusal_of(item) for item in frontier.items("state = 'rejected'"))
    _write_lines(store.folder / KEPT, kept)
    _write_lines(store.folder / REJECTED, refused)


def record_of(item: Item, frontier: Frontier, store: Store) -> dict[str, Any]:
    """The record of a kept recording; its audio path is relative to the crawl's folder."""
    known = frontier.facts(item.id)
    title, language = (_first(known, key) for key in ("title", "language"))
    video, outcome = item.outcome.get("video") or {}, item.outcome
    path = store.audio(item).relative_to(store.folder).as_posix()
    samples = round((item.seconds or 0.0) * outcome["sample_rate"])
    # For what was let through, the list of licences no longer matters.
    stated = strongest(statements(frontier, item), allowed=())
    return {
        "id": item.id, "source": _source(item, stated), "title": video.get("title") or title,
        "audio": {
            "path": path, "sample_rate": outcome["sample_rate"], "channels": outcome["channels"], "start": 0,
            "duration": samples / outcome["sample_rate"], "format": outcome["format"], "pcm_hash": item.fingerprint,
        },
        "lang": {"code": video.get("language") or language, "confidence": None},
        "decisions": [_decision(item)],
    }  # fmt: skip


def refusal_of(item: Item) -> dict[str, Any]:
    """The record of a rejected item: where it came from, and why not."""
    return {"id": item.id, "source": {"url": item.url}, "decisions": [_decision(item)]}


def kept_urls(folder: Path) -> list[str]:
    """The URLs of the recordings that a crawl kept."""
    return [row["source"]["url"] for row in _read_lines(folder / KEPT)]


def refused_urls(folder: Path) -> dict[str, str]:
    """URL -> reason of what a crawl rejected."""
    return {row["source"]["url"]: row["decisions"][0]["reason"] for row in _read_lines(folder / REJECTED)}


def _source(item: Item, stated: Statement) -> dict[str, Any]:
    outcome = item.outcome
    return {
        "url": item.url, "fetched_at": outcome["fetched_at"], "etag": outcome["etag"], "sha256": item.sha256,
        "robots": None if item.kind == "file" else True, "licence_raw": stated.raw, "spdx": stated.spdx,
    }  # fmt: skip


def _decision(item: Item) -> dict[str, Any]:
    kept = item.state == "done"
    return {
        "stage": STAGE,
        "version": STAGE_VERSION,
        "keep": kept,
        "reason": item.reason or "",
        "detail": item.detail or "",
    }


def _first(known: list[dict[str, Any]], key: str) -> str:
    """The nearest source's word, the smallest where several are as near."""
    words = [(-facts.get("level", 0), facts[key]) for facts in known if facts.get(key)]
    return min(words)[1] if words else ""


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    def write(scratch: Path) -> None:
        with scratch.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)

    write_atomically(path, write)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
