"""The records of a crawl, written from the frontier: kept recordings, and rejected items with reasons.

A record is built from the statements of all sources of an item, so it does not depend on the order in which they were
found.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from speechgpt2.data.crawl.crawl_folder import CrawlFolder
from speechgpt2.data.crawl.frontier import Frontier
from speechgpt2.data.crawl.frontier_reader import RECORDINGS, CrawlItem
from speechgpt2.data.crawl.licence import ITEM, Statement, strongest
from speechgpt2.data.record import AudioInfo, Clip, ClipText, Decision, Label, Language, Source
from speechgpt2.hub import write_atomically
from speechgpt2.tts.utterance import Word

KEPT_FILE, REJECTED_FILE = "manifest.jsonl", "rejected.jsonl"
STAGE, STAGE_VERSION = "crawl", 1
# Labels of values that the source states.
BY_SOURCE, BY_TRANSCRIPT = Label("crawl"), Label("podcast:transcript")


def statements(frontier: Frontier, item: CrawlItem, video: str = "") -> list[Statement]:
    """Return the statements of an item's sources about its licence, and that of the `video` itself."""
    own = video or (item.outcome.get("video") or {}).get("licence", "")
    from_parents = [Statement(facts.get("licence", ""), facts.get("level", 0)) for facts in frontier.facts(item.id)]
    return [*from_parents, Statement(own, ITEM)] if own else from_parents


def transcript_of(frontier: Frontier, item: CrawlItem) -> list[str]:
    """Return URL and type of the transcript that the nearest source names, or an empty list."""
    return _first(frontier.facts(item.id), "transcript") or []


def write(store: CrawlFolder, frontier: Frontier) -> None:
    """Write both manifests into the crawl's folder, in the order of the items' ids."""
    kinds = ", ".join(f"'{kind}'" for kind in RECORDINGS)
    kept = (record_of(item, frontier, store) for item in frontier.items(f"state = 'done' AND kind IN ({kinds})"))
    rejected = (rejection_of(item) for item in frontier.items("state = 'rejected'"))
    _write_lines(store.folder / KEPT_FILE, kept)
    _write_lines(store.folder / REJECTED_FILE, rejected)


def record_of(item: CrawlItem, frontier: Frontier, store: CrawlFolder) -> Clip:
    """Return the record of a kept recording; its path is relative to the crawl's folder."""
    facts, outcome = frontier.facts(item.id), item.outcome
    video = outcome.get("video") or {}
    # For kept recordings the allow-list no longer matters.
    stated = strongest(statements(frontier, item), allowed=())
    language = (video.get("language") or _first(facts, "language")).partition("-")[0].lower()
    source = Source(
        item.url, outcome["fetched_at"], outcome["etag"] or None, item.sha256, None if item.kind == "file" else True,
        stated.raw, stated.spdx,
    )  # fmt: skip
    audio = AudioInfo(
        store.audio(item).relative_to(store.folder).as_posix(), outcome["sample_rate"], outcome["channels"],
        duration=item.seconds or 0.0, format=outcome["format"], pcm_hash=item.fingerprint or "",
    )  # fmt: skip
    transcript = outcome.get("transcript")
    labels = {**({"lang.code": BY_SOURCE} if language else {}), **({"text": BY_TRANSCRIPT} if transcript else {})}
    return Clip(
        item.id, title=video.get("title") or _first(facts, "title"), source=source, audio=audio,
        lang=Language(language),
        text=_transcript_of(transcript["lines"]) if transcript else ClipText(), decisions=(_decision(item),),
        labels_from=labels,
    )  # fmt: skip


def _transcript_of(lines: list[list[Any]]) -> ClipText:
    words = tuple(Word(*line) for line in lines)
    timed = len(words) > 1 or words[0].end > words[0].start
    return ClipText(raw=" ".join(word.text for word in words), lines=words if timed else ())


def rejection_of(item: CrawlItem) -> Clip:
    """Return the record of a rejected item: its source and the reason.

    After a takedown it has the hash by which later stages recognise the content.
    """
    sha256 = item.sha256 if item.reason == "taken-down" else None
    return Clip(item.id, source=Source(item.url, sha256=sha256), decisions=(_decision(item),))


def kept_urls(folder: Path) -> list[str]:
    """Return the URLs of the recordings that a crawl kept."""
    return [clip.source.url for clip in _read_lines(folder / KEPT_FILE)]


def rejected_urls(folder: Path) -> dict[str, str]:
    """Return the reason for every URL that a crawl rejected."""
    return {clip.source.url: clip.decisions[0].reason for clip in _read_lines(folder / REJECTED_FILE)}


def _decision(item: CrawlItem) -> Decision:
    kept = item.state == "done"
    return Decision(STAGE, STAGE_VERSION, kept, reason=item.reason or "", detail=item.detail or "")


def _first(parents: list[dict[str, Any]], key: str) -> Any:
    """Return the value of the nearest source; of equally near ones the smallest."""
    values = [(-facts.get("level", 0), facts[key]) for facts in parents if facts.get(key)]
    return min(values)[1] if values else ""


def _write_lines(path: Path, clips: Iterable[Clip]) -> None:
    def write(scratch: Path) -> None:
        with scratch.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(clip.to_json() + "\n" for clip in clips)

    write_atomically(path, write)


def _read_lines(path: Path) -> list[Clip]:
    with path.open(encoding="utf-8") as file:
        return [Clip.from_json(line) for line in file]
