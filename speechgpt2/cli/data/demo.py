"""`sg2 data demo`: the data pipeline from a web site to labelled shards, offline, in a minute or two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from speechgpt2.cli.common import spinner
from speechgpt2.cli.data import crawl as crawling
from speechgpt2.cli.data import pipeline
from speechgpt2.errors import UserError

if TYPE_CHECKING:
    from speechgpt2.data.crawl.seeds import CrawlConfig

Out = Annotated[Path, typer.Option("--out", "-o", help="Folder of the demo; a stopped demo resumes.", metavar="FOLDER")]
Count = Annotated[int | None, typer.Option(help="Number of processes. [default: number of cores]", min=1)]


def demo(out: Out = Path("runs/demo-data"), workers: Count = None) -> None:
    """Run the whole data pipeline on a small local web site: crawl, clean, annotate, shards, report.

    The site holds synthetic speech and common crawler traps. No network is needed.
    Run the same command again to resume.
    """
    seeds, crawl, run = out / "seeds.yaml", out / "crawl", out / "run"
    _check_tools()
    if _is_crawled(seeds, crawl):
        print(f"{crawl}: nothing left to fetch")
    else:
        with _site(seeds):
            _print_command("crawl", seeds, "-o", crawl)
            try:
                crawling.crawl(seeds, crawl)
            except typer.Exit:
                print(f"(the site stops with this command; to resume: sg2 data demo -o {out})")
                raise
    manifest = crawl / "manifest.jsonl"
    if not pipeline.is_annotated(run):  # the steps of `annotate` include those of `clean`
        _print_command("clean", manifest, "-o", run)
        pipeline.clean(manifest, run, workers=workers)
    _print_command("annotate", run)
    pipeline.annotate(run, workers)
    page = run / "report.html"
    if not page.exists():
        _print_command("report", run)
        pipeline.report(run)
    print(_summary(crawl, run, page))


def _print_command(*words: str | Path) -> None:
    """Print the equivalent command of the next step."""
    print("\n$ sg2 data", *words, flush=True)


def _check_tools() -> None:
    """Check before any work that all packages are installed.

    Raises:
        UserError: one is missing; the message says what to install.
    """
    with crawling.needs_extra():
        from speechgpt2.data.crawl import demo_site as site
    from speechgpt2.data.pipeline import scores

    scores.check()
    site.speak_episode("en", "Hello.")
    site.speak_episode("zh", "你好。")


def _is_crawled(seeds: Path, crawl: Path) -> bool:
    if not (seeds.is_file() and (crawl / "manifest.jsonl").is_file()):
        return False
    with crawling.open_crawl(_config(seeds), crawl) as opened:
        return opened.frontier.totals().open == 0


def _config(seeds: Path) -> CrawlConfig:
    from speechgpt2.data.crawl.seeds import load

    return load(seeds)


@contextmanager
def _site(seeds: Path) -> Iterator[None]:
    """Serve the site while the block runs.

    The first run chooses a free port and writes the seeds; later runs use the port that the seeds name.
    """
    import yaml

    from speechgpt2.data.crawl import demo_site as site
    from speechgpt2.hub import write_atomically

    with spinner("synthesizing the episodes"):
        talks = site.talk_routes(site.speak_talks())
        routes = {**site.routes_of(site.speak_site(), site.PRIVATE_URL), **talks}
    port = urlsplit(_config(seeds).seeds[0].url).port or 0 if seeds.is_file() else 0
    server = site.DemoServer(routes, port)
    try:
        with site.in_background(server):
            if not seeds.is_file():
                feeds = [path for path in talks if path.endswith(".xml")]
                plan = yaml.safe_dump(site.seeds_of(server, *feeds), sort_keys=False)
                seeds.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(seeds, lambda scratch: scratch.write_text(plan, encoding="utf-8"))
            print(f"serving a site with {len(routes)} addresses at {server.url('/')}")
            yield
    except OSError as error:
        if port:
            raise UserError(f"the site of {seeds} needs port {port}, which is not free ({error})") from None
        raise


def _summary(crawl: Path, run: Path, page: Path) -> str:
    from speechgpt2.data.crawl import manifest
    from speechgpt2.data.pipeline import output, scores

    fetched, rejected = manifest.kept_urls(crawl), manifest.rejected_urls(crawl)
    lines = [f"\nFetched {len(fetched)} recordings, rejected {len(rejected)} addresses:"]
    for reason, count in sorted(Counter(rejected.values()).items()):
        paths = [urlsplit(url).path for url, url_reason in rejected.items() if url_reason == reason]
        lines.append(f"  {reason:16s} {count}   {', '.join(paths)}")
    rows = list(scores.read(run / output.SCORES_FILE))
    kept = [row for row in rows if row["kept"]]
    lines.append(f"Kept {len(kept)} of {len(rows)} clips of speech, {sum(row['seconds'] for row in kept) / 3600:.3f} h")
    reasons = Counter(row["reason"] for row in rows if not row["kept"])
    lines += [f"  rejected: {count} {reason}" for reason, count in reasons.most_common()]
    lines += [
        f"Shards     {run / output.SHAR_FOLDER}   (lhotse: CutSet.from_shar(in_dir=...))",
        f"Scores     {run / output.SCORES_FILE}",
        f"Rejected   {crawl / manifest.REJECTED_FILE}, {run / output.REJECTED_FILE}",
        f"Report     {page}",
    ]
    return "\n".join(lines)
