"""The records of a crawl, written from the frontier: what is kept, and what is not and why.

A record is built from everything that all sources say of an item, so the order in which they were found leaves no
trace in it.
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

KEPT, REJECTED = "manifest.jsonl", "rejected.jsonl"
STAGE, STAGE_VERSION = "crawl", 1
STATED, SAID = Label("crawl"), Label("podcast:transcript")  # the source's statement


def statements(frontier: Frontier, item: CrawlItem, video: str = "") -> list[Statement]:
    """Return what each source of an item says of its licence, and what a `video` says itself."""
    own = video or (item.outcome.get("video") or {}).get("licence", "")
    found = [Statement(facts.get("licence", ""), facts.get("level", 0)) for facts in frontier.facts(item.id)]
    return [*found, Statement(own, ITEM)] if own else found


def transcript_of(frontier: Frontier, item: CrawlItem) -> list[str]:
    """Return URL and type of the transcript that the nearest source names, or an empty list."""
    return _first(frontier.facts(item.id), "transcript") or []


def write(store: CrawlFolder, frontier: Frontier) -> None:
    """Write both manifests into the crawl's folder, in the order of the items' ids."""
    kinds = ", ".join(f"'{kind}'" for kind in RECORDINGS)
    kept = (record_of(item, frontier, store) for item in frontier.items(f"state = 'done' AND kind IN ({kinds})"))
    refused = (refusal_of(item) for item in frontier.items("state = 'rejected'"))
    _write_lines(store.folder / KEPT, kept)
    _write_lines(store.folder / REJECTED, refused)


def record_of(item: CrawlItem, frontier: Frontier, store: CrawlFolder) -> Clip:
    """Return the record of a kept recording; its path is relative to the crawl's folder."""
    known, outcome = frontier.facts(item.id), item.outcome
    video = outcome.get("video") or {}
    # For kept recordings the allow-list no longer matters.
    stated = strongest(statements(frontier, item), allowed=())
    language = (video.get("language") or _first(known, "language")).partition("-")[0].lower()
    source = Source(
        item.url, outcome["fetched_at"], outcome["etag"] or None, item.sha256, None if item.kind == "file" else True,
        stated.raw, stated.spdx,
    )  # fmt: skip
    audio = AudioInfo(
        store.audio(item).relative_to(store.folder).as_posix(), outcome["sample_rate"], outcome["channels"],
        duration=item.seconds or 0.0, format=outcome["format"], pcm_hash=item.fingerprint or "",
    )  # fmt: skip
    said = outcome.get("transcript")
    labels = {**({"lang.code": STATED} if language else {}), **({"text": SAID} if said else {})}
    return Clip(
        item.id, title=video.get("title") or _first(known, "title"), source=source, audio=audio,
        lang=Language(language),
        text=_transcript_of(said["lines"]) if said else ClipText(), decisions=(_decision(item),),
        labels_from=labels,
    )  # fmt: skip


def _transcript_of(lines: list[list[Any]]) -> ClipText:
    words = tuple(Word(*line) for line in lines)
    timed = len(words) > 1 or words[0].end > words[0].start
    return ClipText(raw=" ".join(word.text for word in words), lines=words if timed else ())


def refusal_of(item: CrawlItem) -> Clip:
    """Return the record of a rejected item: its source and the reason.

    After a takedown it has the hash by which later stages recognise the content.
    """
    sha256 = item.sha256 if item.reason == "taken-down" else None
    return Clip(item.id, source=Source(item.url, sha256=sha256), decisions=(_decision(item),))


def kept_urls(folder: Path) -> list[str]:
    """Return the URLs of the recordings that a crawl kept."""
    return [clip.source.url for clip in _read_lines(folder / KEPT)]


def refused_urls(folder: Path) -> dict[str, str]:
    """Return the reason for every URL that a crawl rejected."""
    return {clip.source.url: clip.decisions[0].reason for clip in _read_lines(folder / REJECTED)}


def _decision(item: CrawlItem) -> Decision:
    kept = item.state == "done"
    return Decision(STAGE, STAGE_VERSION, kept, reason=item.reason or "", detail=item.detail or "")


def _first(known: list[dict[str, Any]], key: str) -> Any:
    """Return the value of the nearest source; of equally near ones the smallest."""
    words = [(-facts.get("level", 0), facts[key]) for facts in known if facts.get(key)]
    return min(words)[1] if words else ""


def _write_lines(path: Path, clips: Iterable[Clip]) -> None:
    def write(scratch: Path) -> None:
        with scratch.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(clip.to_json() + "\n" for clip in clips)

    write_atomically(path, write)


def _read_lines(path: Path) -> list[Clip]:
    with path.open(encoding="utf-8") as file:
        return [Clip.from_json(line) for line in file]
