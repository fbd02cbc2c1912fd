"""`sg2 data demo`: the data system from a web site to labelled shards, on this machine, in a minute or two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from speechgpt2.cli import crawl as crawling
from speechgpt2.cli import pipeline
from speechgpt2.cli.common import working
from speechgpt2.errors import UserError

if TYPE_CHECKING:
    from speechgpt2.data.crawl.seeds import CrawlConfig

Out = Annotated[Path, typer.Option("--out", "-o", help="Everything goes here.", metavar="FOLDER")]
Count = Annotated[int | None, typer.Option(help="Processes; as many as there are cores if not given.", min=1)]


def demo(out: Out = Path("runs/demo-data"), workers: Count = None) -> None:
    """See all of it at work: a small web site with traps is served on this machine, crawled, cleaned, labelled,
    written as shards, and reported on. The voices are synthetic, no network is needed. Run it again to go on."""
    seeds, crawl, run = out / "seeds.yaml", out / "crawl", out / "run"
    _check_tools()
    if _is_crawled(seeds, crawl):
        print(f"{crawl}: nothing left to fetch")
    else:
        with _site(seeds):
            _say("crawl", seeds, "-o", crawl)
            try:
                crawling.crawl(seeds, crawl)
            except typer.Exit:
                print(f"(the site is gone with this command; sg2 data demo -o {out} brings it back and goes on)")
                raise
    manifest = crawl / "manifest.jsonl"
    if not pipeline.is_annotated(run):  # else labelling begins with what cleaning does
        _say("clean", manifest, "-o", run)
        pipeline.clean(manifest, run, workers=workers)
    _say("annotate", run)
    pipeline.annotate(run, workers)
    page = run / "report.html"
    if not page.exists():
        _say("report", run)
        pipeline.report(run)
    print(_summary(crawl, run, page))


def _say(*words: str | Path) -> None:
    """The command as a person would type it."""
    print("\n$ sg2 data", *words, flush=True)


def _check_tools() -> None:
    """Errors: `UserError` that says what to install, before any work is done."""
    with crawling.needs_extra():
        from speechgpt2.data.crawl import demo as site
    from speechgpt2.data.pipeline import scores

    scores.check()
    site.speak_episode("en", "Hello.")
    site.speak_episode("zh", "你好。")


def _is_crawled(seeds: Path, crawl: Path) -> bool:
    if not (seeds.is_file() and (crawl / "manifest.jsonl").is_file()):
        return False
    with crawling.opened(_config(seeds), crawl) as begun:
        return begun.frontier.totals().open == 0


def _config(seeds: Path) -> CrawlConfig:
    from speechgpt2.data.crawl.seeds import load

    return load(seeds)


@contextmanager
def _site(seeds: Path) -> Iterator[None]:
    """The site at the address that the seeds name, or, at first, at one that is then written into them."""
    import yaml

    from speechgpt2.data.crawl import demo as site
    from speechgpt2.hub import write_atomically

    with working("speaking the episodes"):
        talks = site.talk_routes(site.speak_talks())
        routes = {**site.routes_of(site.speak_site(), site.AWAY), **talks}
    port = urlsplit(_config(seeds).seeds[0].url).port or 0 if seeds.is_file() else 0
    server = site.Server(routes, port)
    try:
        with site.in_background(server):
            if not seeds.is_file():
                feeds = [path for path in talks if path.endswith(".xml")]
                plan = yaml.safe_dump(site.seeds_of(server, *feeds), sort_keys=False)
                seeds.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(seeds, lambda scratch: scratch.write_text(plan, encoding="utf-8"))
            print(f"a site with {len(routes)} addresses is up at {server.url('/')}")
            yield
    except OSError as error:
        if port:
            raise UserError(f"the site of {seeds} was on port {port}, which cannot be had now ({error})") from None
        raise


def _summary(crawl: Path, run: Path, page: Path) -> str:
    from speechgpt2.data.crawl import manifest
    from speechgpt2.data.pipeline import output, scores

    kept, refused = manifest.kept_urls(crawl), manifest.refused_urls(crawl)
    lines = [f"\nFetched {len(kept)} recordings, refused {len(refused)} addresses:"]
    for reason, count in sorted(Counter(refused.values()).items()):
        paths = [urlsplit(url).path for url, said in refused.items() if said == reason]
        lines.append(f"  {reason:16s} {count}   {', '.join(paths)}")
    rows = list(scores.read(run / output.SCORES))
    good = [row for row in rows if row["kept"]]
    lines.append(f"Kept {len(good)} of {len(rows)} clips of speech, {sum(row['seconds'] for row in good) / 3600:.3f} h")
    lost = Counter(row["reason"] for row in rows if not row["kept"])
    lines += [f"  rejected: {count} {reason}" for reason, count in lost.most_common()]
    lines += [
        f"Shards     {run / output.SHAR}   (lhotse: CutSet.from_shar(in_dir=...))",
        f"Scores     {run / output.SCORES}",
        f"Rejected   {crawl / manifest.REJECTED}, {run / output.REJECTED}",
        f"Report     {page}",
    ]
    return "\n".join(lines)
