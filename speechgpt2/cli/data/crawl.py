"""`sg2 data crawl` and `sg2 data takedown`: collects recordings from the web and from folders, and removes them."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from speechgpt2.cli.common import spinner
from speechgpt2.errors import UserError

if TYPE_CHECKING:
    from speechgpt2.data.crawl.crawler import Crawl
    from speechgpt2.data.crawl.frontier_reader import Totals
    from speechgpt2.data.crawl.seeds import CrawlConfig

SHOWN = 20  # items that a dry run lists

Seeds = Annotated[Path, typer.Argument(help="Sources and settings: see docs/crawl.md.", metavar="SEEDS.YAML")]
Out = Annotated[
    Path, typer.Option("--out", "-o", help="Folder of the crawl; a stopped crawl resumes.", metavar="FOLDER")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Read feeds and pages and list what would be fetched; store nothing.")
]
Refresh = Annotated[bool, typer.Option(help="Read known feeds, sitemaps and pages again.")]
AllowNetwork = Annotated[
    list[str] | None,
    typer.Option(help="A private network to allow, e.g. 127.0.0.0/8 (repeatable).", metavar="CIDR"),
]
Source = Annotated[
    str, typer.Argument(help="A URL, or a crawled folder. A URL that ends in / includes all URLs below it.")
]
Folder = Annotated[Path, typer.Argument(help="Folder of the crawl.", metavar="FOLDER")]
Runs = Annotated[
    list[Path] | None,
    typer.Option(help="A run of this crawl at a new path, if it was moved (repeatable).", metavar="RUN"),
]


def crawl(
    seeds: Seeds, out: Out, dry_run: DryRun = False, refresh: Refresh = False, allow_network: AllowNetwork = None
) -> None:
    """Fetch recordings from feeds, sitemaps, pages, links and folders.

    Run the same command again to resume; finished work is never repeated.
    """
    config = _load(seeds, allow_network or [])
    if dry_run:
        _plan(config, out)
        return
    with open_crawl(config, out) as crawl:
        with spinner("checking the folder"):
            crawl.prepare(refresh)
        totals, stopped = asyncio.run(_run(crawl))
    print(f"{out}: {_summary(totals)}")
    if stopped:
        print(f"stopped; to resume: sg2 data crawl {seeds} -o {out}")
        raise typer.Exit(130)


def takedown(source: Source, folder: Folder, run: Runs = None) -> None:
    """Remove a source and everything derived from it, and never fetch it again.

    This covers the crawl and every run of `sg2 data clean` and `annotate` that was made from it. Copies of the same
    content under other URLs are removed, too.
    """
    with needs_extra():
        from speechgpt2.data.crawl.takedown import take_down
    from speechgpt2.data.pipeline.takedown import runs_of

    removed = take_down(source, folder)
    kept = [item for item in removed if item.state == "done" and item.sha256]
    hours = sum(item.seconds or 0.0 for item in kept) / 3600
    print(f"{source}: removed {len(kept)} recordings ({hours:.2f} h); it will not be fetched again")
    runs = dict.fromkeys([*runs_of(folder), *(path.resolve() for path in run or ())])
    problems = [problem for path in runs if (problem := _forget(path, folder))]
    if problems:
        raise UserError(f"not removed everywhere: {'; '.join(problems)}; fix this and run the same command again")


def _forget(run: Path, crawl: Path) -> str:
    """Remove taken-down content from a run; return the reason if that is impossible, else an empty string."""
    from speechgpt2.cli.data import pipeline
    from speechgpt2.data.crawl.manifest import KEPT_FILE

    if not (run / pipeline.RUN_SETTINGS).is_file():
        return f"{run} does not exist (if it was moved, give its new path with --run)"
    try:
        pipeline.forget(run, crawl / KEPT_FILE)
    except UserError as error:
        return str(error)
    return ""


def _load(seeds: Path, networks: list[str]) -> CrawlConfig:
    from dataclasses import replace

    with needs_extra():
        from speechgpt2.data.crawl.seeds import load

    config = load(seeds)
    return replace(config, fetch=replace(config.fetch, allow_networks=(*config.fetch.allow_networks, *networks)))


@contextmanager
def needs_extra() -> Iterator[None]:
    """Turn a missing package inside the block into a message that names the extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(f"crawling needs {error.name}: pip install 'speechgpt2[crawl]'") from None


@contextmanager
def open_crawl(config: CrawlConfig, folder: Path, plan_only: bool = False) -> Iterator[Crawl]:
    """Open the crawl in `folder` and close it after the block."""
    from speechgpt2.data.crawl.crawler import Crawl

    crawl = Crawl(config, folder, plan_only=plan_only)
    try:
        yield crawl
    finally:
        crawl.close()


async def _run(crawl: Crawl) -> tuple[Totals, bool]:
    """Run with progress on a terminal. The first signal finishes open requests, a second one stops at once."""
    loop, stopped = asyncio.get_running_loop(), False

    def stop(number: int, frame: Any) -> None:
        nonlocal stopped
        stopped = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        loop.call_soon_threadsafe(crawl.stop)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    progress = asyncio.create_task(_show(crawl))
    try:
        return await crawl.run(), stopped
    finally:
        progress.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


async def _show(crawl: Crawl) -> None:
    """Show a status line on stderr, if that is a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        return
    with console.status("crawling …") as status:
        while True:
            status.update(f"{_summary(crawl.frontier.totals())} · {crawl.received / 1e6:.1f} MB received")
            await asyncio.sleep(0.5)


def _summary(totals: Totals) -> str:
    rejected = ", ".join(f"{count} {reason}" for reason, count in sorted(totals.rejected.items()))
    return (
        f"{totals.recordings} recordings, {totals.hours:.2f} h, {totals.bytes / 1e6:.1f} MB; "
        f"{totals.documents} documents read, {totals.open} waiting, rejected: {rejected or 'none'}"
    )


def _plan(config: CrawlConfig, out: Path) -> None:
    """Read the documents into a temporary copy of the frontier and list the recordings to fetch."""
    import tempfile

    from speechgpt2.data.crawl.crawl_folder import FRONTIER
    from speechgpt2.data.crawl.database import Database
    from speechgpt2.data.crawl.handlers import PLANNED

    with tempfile.TemporaryDirectory() as scratch:
        if (out / FRONTIER).is_file():
            database = Database(out / FRONTIER)
            database.copy_to(Path(scratch) / FRONTIER)
            database.close()
        with open_crawl(config, Path(scratch), plan_only=True) as crawl:
            crawl.prepare()
            totals, _ = asyncio.run(_run(crawl))
            planned = list(crawl.frontier.items("state = 'rejected' AND reason = ?", PLANNED))
    for item in planned[:SHOWN]:
        print(f"{item.url}  ({item.detail})")
    if len(planned) > SHOWN:
        print(f"… and {len(planned) - SHOWN} more")
    rejected = {reason: count for reason, count in totals.rejected.items() if reason != PLANNED}
    print(f"would fetch {len(planned)} recordings; rejected before fetching: {rejected or 'none'}; nothing was stored")
