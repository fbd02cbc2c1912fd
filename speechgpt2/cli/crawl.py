"""`sg2 data crawl` and `sg2 data takedown`: recordings from the web and from folders, and taking them back."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from speechgpt2.cli.common import working
from speechgpt2.errors import UserError

if TYPE_CHECKING:
    from speechgpt2.data.crawl.crawler import Crawl
    from speechgpt2.data.crawl.frontier import Totals
    from speechgpt2.data.crawl.seeds import CrawlConfig

SHOWN = 20  # of the items that a dry run lists

Seeds = Annotated[Path, typer.Argument(help="What to crawl and how: see docs/crawl.md.", metavar="SEEDS.YAML")]
Out = Annotated[Path, typer.Option("--out", "-o", help="The crawl's folder, new or begun.", metavar="FOLDER")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Read feeds and pages, list what would be fetched, keep nothing.")
]
Refresh = Annotated[bool, typer.Option(help="Ask feeds, sitemaps and pages that were read before for what is new.")]
AllowNetwork = Annotated[
    list[str] | None,
    typer.Option(help="A network that may be reached though it is not public, e.g. 127.0.0.0/8.", metavar="CIDR"),
]
Source = Annotated[str, typer.Argument(help="A URL (all below it, if it ends in /), or a folder that was crawled.")]
Folder = Annotated[Path, typer.Argument(help="The crawl's folder.", metavar="FOLDER")]
Runs = Annotated[
    list[Path] | None,
    typer.Option(help="A run made from it that was moved; may be given several times.", metavar="RUN"),
]


def crawl(
    seeds: Seeds, out: Out, dry_run: DryRun = False, refresh: Refresh = False, allow_network: AllowNetwork = None
) -> None:
    """Fetch recordings from feeds, sitemaps, pages, links and folders. Run it again to go on; it never starts over."""
    config = _load(seeds, allow_network or [])
    if dry_run:
        _plan(config, out)
        return
    with opened(config, out) as crawl:
        with working("looking at the folder"):
            crawl.prepare(refresh)
        totals, stopped = asyncio.run(_run(crawl))
    print(f"{out}: {_summary(totals)}")
    if stopped:
        print(f"stopped; to go on: sg2 data crawl {seeds} -o {out}")
        raise typer.Exit(130)


def takedown(source: Source, folder: Folder, run: Runs = None) -> None:
    """Remove a source with everything derived from it, and never fetch it again, wherever its content turns up.

    Reaches the crawl, and the folders of `sg2 data clean` and `annotate` that were made from it.
    """
    with needs_extra():
        from speechgpt2.data.crawl.takedown import take_down
    from speechgpt2.data.pipeline.takedown import runs_of

    removed = take_down(source, folder)
    kept = [item for item in removed if item.state == "done" and item.sha256]
    hours = sum(item.seconds or 0.0 for item in kept) / 3600
    print(f"{source}: removed {len(kept)} recordings ({hours:.2f} h); it will not be fetched again")
    named = [path.resolve() for path in run or ()]
    missed = [said for path in dict.fromkeys([*runs_of(folder), *named]) if (said := _forget(path, folder))]
    if missed:
        raise UserError(f"not removed everywhere: {'; '.join(missed)}; give the same command again after that")


def _forget(run: Path, crawl: Path) -> str:
    """Remove from a run what was taken down; says why it could not be done."""
    from speechgpt2.cli import pipeline
    from speechgpt2.data.crawl.manifest import KEPT

    if not (run / pipeline.REMEMBERED).is_file():
        return f"{run} is not there (where it was moved to is said by --run)"
    try:
        pipeline.forget(run, crawl / KEPT)
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
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(f"crawling needs {error.name}: pip install 'speechgpt2[crawl]'") from None


@contextmanager
def opened(config: CrawlConfig, folder: Path, plan_only: bool = False) -> Iterator[Crawl]:
    from speechgpt2.data.crawl.crawler import Crawl

    crawl = Crawl(config, folder, plan_only=plan_only)
    try:
        yield crawl
    finally:
        crawl.close()


async def _run(crawl: Crawl) -> tuple[Totals, bool]:
    """Run with progress on a terminal; the first Ctrl-C or SIGTERM stops in order, a second one at once."""
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
    """A line on stderr that says where the crawl stands, if that is a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        return
    with console.status("crawling …") as status:
        while True:
            status.update(f"{_summary(crawl.frontier.totals())} · {crawl.received / 1e6:.1f} MB received")
            await asyncio.sleep(0.5)


def _summary(totals: Totals) -> str:
    refused = ", ".join(f"{count} {reason}" for reason, count in sorted(totals.rejected.items()))
    return (
        f"{totals.recordings} recordings, {totals.hours:.2f} h, {totals.bytes / 1e6:.1f} MB; "
        f"{totals.documents} documents read, {totals.open} waiting, rejected: {refused or 'none'}"
    )


def _plan(config: CrawlConfig, out: Path) -> None:
    """Crawl the documents into a copy of the frontier that is thrown away, and list what is left to fetch."""
    import tempfile

    from speechgpt2.data.crawl.database import Database
    from speechgpt2.data.crawl.handlers import PLANNED
    from speechgpt2.data.crawl.store import FRONTIER

    with tempfile.TemporaryDirectory() as scratch:
        if (out / FRONTIER).is_file():
            known = Database(out / FRONTIER)
            known.copy_to(Path(scratch) / FRONTIER)
            known.close()
        with opened(config, Path(scratch), plan_only=True) as crawl:
            crawl.prepare()
            totals, _ = asyncio.run(_run(crawl))
            planned = list(crawl.frontier.items("state = 'rejected' AND reason = ?", PLANNED))
    for item in planned[:SHOWN]:
        print(f"{item.url}  ({item.detail})")
    if len(planned) > SHOWN:
        print(f"… and {len(planned) - SHOWN} more")
    refused = {reason: count for reason, count in totals.rejected.items() if reason != PLANNED}
    print(f"would fetch {len(planned)} recordings; rejected before fetching: {refused or 'none'}; nothing was kept")
