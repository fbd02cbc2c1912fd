"""`sg2 data clean`, `annotate`, `rethreshold`, `report` and `audit`: recordings become clean, labelled clips."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from speechgpt2.cli.common import spinner
from speechgpt2.errors import UserError

if TYPE_CHECKING:
    from speechgpt2.data.pipeline.output import Summary
    from speechgpt2.data.pipeline.runner import ReportProgress
    from speechgpt2.data.steps import PipelineConfig

REPORT_FILE, RUN_SETTINGS = "report.html", Path("work", "run.yaml")

Source = Annotated[Path, typer.Argument(help="A folder of recordings, or a manifest of records.", metavar="SOURCE")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder of the run; a stopped run resumes.", metavar="FOLDER")]
Preset = Annotated[str, typer.Option(help="emilia, tts-strict, asr, dialogue or a YAML file.", metavar="NAME")]
Count = Annotated[int | None, typer.Option(help="Number of processes. [default: number of cores]", min=1)]
OnRay = Annotated[
    bool, typer.Option("--ray", help="Run on Ray Data: on this machine, or on the cluster named by RAY_ADDRESS.")
]
RunFolder = Annotated[Path, typer.Argument(help="Folder of the run.", metavar="FOLDER")]
Thresholds = Annotated[
    list[str],
    typer.Option(
        "--set", help="A rejection reason and its new threshold, e.g. noisy=12 (repeatable).", metavar="REASON=NUMBER"
    ),
]
Page = Annotated[Path | None, typer.Option("--out", "-o", help="The HTML file. [default: report.html in the folder]")]
Voices = Annotated[Path | None, typer.Option(help="Also plant faults into these recordings.", metavar="FOLDER")]
Clips = Annotated[int, typer.Option(help="Synthetic clips per fault.", min=8)]
Seed = Annotated[int, typer.Option(help="Random seed.")]


def clean(source: Source, out: Out, preset: Preset = "emilia", workers: Count = None, ray: OnRay = False) -> None:
    """Decode, segment, measure and filter recordings.

    Run the same command again to resume; finished work is never repeated.
    """
    from speechgpt2.data import steps as presets

    config = presets.load(preset)
    _check_separate_folders(source, out)
    _process(source, out, config, workers, compute=True, ray=ray)


def annotate(folder: RunFolder, workers: Count = None, ray: OnRay = False) -> None:
    """Label the kept clips of a run: words, phones and tones with their times, prosody, style captions."""
    source, config = _load_settings(folder)
    _process(source, folder, config.with_labels(), workers, compute=True, ray=ray)


def rethreshold(folder: RunFolder, changes: Thresholds) -> None:
    """Filter a run again with other thresholds, from the stored scores. Nothing is measured again."""
    source, config = _load_settings(folder)
    config = config.with_thresholds(dict(_change(change) for change in changes))
    summary = _process(source, folder, config, 1, compute=False)
    pending = summary.reasons.get("pending", (0, 0.0))[0]
    if pending:
        print(f"{pending} clips lack the scores of some steps; to measure them: sg2 data clean {source} -o {folder}")


def report(folder: RunFolder, out: Page = None) -> None:
    """Write an HTML report: kept and rejected clips with reasons, audio and spectrograms.

    From then on the other commands keep report.html in the folder up to date.
    """
    from speechgpt2.data.clean.html_report import write
    from speechgpt2.data.pipeline.runner import PipelineRun

    source, config = _load_settings(folder)
    target = out or folder / REPORT_FILE
    with spinner("drawing"), PipelineRun(source, folder, config.build()) as run:
        write(run, target)
    print(f"{target}: written")


def audit(clips: Clips = 40, recordings: Voices = None, seed: Seed = 0) -> None:
    """Measure the filters: plant known faults into clean speech and print each filter's precision and recall."""
    from speechgpt2.data.audit import filters as auditing

    with spinner("planting faults and measuring"):
        results = auditing.audit(clips, recordings, seed)
    print(auditing.table(results))


def is_annotated(folder: Path) -> bool:
    """Return whether `annotate` was started on the run in `folder`."""
    return (folder / RUN_SETTINGS).is_file() and (config := _load_settings(folder)[1]) == config.with_labels()


def forget(folder: Path, manifest: Path) -> None:
    """Remove taken-down content from a run.

    Args:
        folder: the run.
        manifest: the crawl's manifest, used if the one that the run names was moved.
    """
    source, config = _load_settings(folder)
    _process(source if source.exists() else manifest, folder, config, 1, compute=False)


def _process(
    source: Path, out: Path, config: PipelineConfig, workers: int | None, compute: bool, ray: bool = False
) -> Summary:
    from speechgpt2.data.clean import html_report as page
    from speechgpt2.data.pipeline import output, takedown
    from speechgpt2.data.pipeline.cluster import RayWorkers
    from speechgpt2.data.pipeline.runner import PipelineRun
    from speechgpt2.data.pipeline.workers import LocalWorkers

    if not source.exists():
        raise UserError(f"{source}: no such folder or manifest")
    with PipelineRun(source, out, config.build()) as run:
        _save_settings(out, source, config)
        takedown.record_run(source, out)
        with _progress() as progress:
            has_changed = run.process(workers, progress, compute, RayWorkers if ray else LocalWorkers)
        if not has_changed:
            print(f"{out}: nothing to do")
            return output.summarise(run)
        with spinner("writing"):
            if (out / REPORT_FILE).is_file():
                page.write(run, out / REPORT_FILE)
            summary = output.write(run)
    print(f"{out}: kept {summary.kept} clips, {summary.seconds / 3600:.3f} h; rejected {summary.rejected}")
    for reason, (count, seconds) in sorted(summary.reasons.items(), key=lambda item: -item[1][1]):
        print(f"  {reason:14s} {count:8d} clips {seconds / 3600:10.3f} h")
    return summary


@contextmanager
def _progress() -> Iterator[ReportProgress | None]:
    """Show a status line with hours of audio per hour on stderr, if that is a terminal."""
    import time

    from rich.console import Console

    console, started = Console(stderr=True), time.monotonic()
    if not console.is_terminal:
        yield None
        return
    with console.status("reading …") as status:

        def show(progress: Any) -> None:
            hours, speed = progress.seconds / 3600, progress.seconds / max(time.monotonic() - started, 1e-3)
            status.update(f"{progress.stages}: {progress.clips} clips, {hours:.2f} h, {speed:.0f} hours per hour")

        yield show


def _check_separate_folders(source: Path, out: Path) -> None:
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise UserError(
            f"{out} is inside {source}: its clips would become recordings of the next run; choose another folder"
        )


def _save_settings(out: Path, source: Path, config: PipelineConfig) -> None:
    """Store the source and the steps for later commands on this run."""
    import yaml

    from speechgpt2 import config as configs
    from speechgpt2.hub import write_atomically

    stored = {"source": str(source.resolve()), **configs.to_dict(config)}
    text = yaml.safe_dump(stored, sort_keys=False, allow_unicode=True)
    write_atomically(out / RUN_SETTINGS, lambda scratch: scratch.write_text(text, encoding="utf-8"))


def _load_settings(folder: Path) -> tuple[Path, PipelineConfig]:
    from speechgpt2 import config as configs
    from speechgpt2.data.steps import PipelineConfig

    path = folder / RUN_SETTINGS
    if not path.is_file():
        raise UserError(f"{folder}: not a run of sg2 data clean")
    stored = configs.read(path)
    return Path(stored.pop("source")), configs.from_dict(PipelineConfig, stored, path.name)


def _change(text: str) -> tuple[str, float]:
    reason, _, number = text.partition("=")
    try:
        return reason, float(number)
    except ValueError:
        raise UserError(f"--set {text}: expected REASON=NUMBER, e.g. noisy=12") from None
