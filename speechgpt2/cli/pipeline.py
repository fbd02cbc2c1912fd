"""`sg2 data clean`, `annotate`, `rethreshold`, `report`, `audit`: recordings to clean clips, and how well it works."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from speechgpt2.cli.common import working
from speechgpt2.errors import UserError

if TYPE_CHECKING:
    from speechgpt2.data.pipeline.output import Summary
    from speechgpt2.data.pipeline.runner import Report
    from speechgpt2.data.steps import PipelineConfig

PAGE, REMEMBERED = "report.html", Path("work", "run.yaml")

Source = Annotated[Path, typer.Argument(help="A folder of recordings, or a manifest of records.", metavar="SOURCE")]
Out = Annotated[Path, typer.Option("--out", "-o", help="The run's folder, new or begun.", metavar="FOLDER")]
Preset = Annotated[str, typer.Option(help="emilia, tts-strict, asr, dialogue, or a YAML file.", metavar="NAME")]
Count = Annotated[int | None, typer.Option(help="Processes; as many as there are cores if not given.", min=1)]
OnRay = Annotated[bool, typer.Option("--ray", help="Work on Ray Data: on this machine, or where RAY_ADDRESS says.")]
RunFolder = Annotated[Path, typer.Argument(help="The folder of a run.", metavar="FOLDER")]
Thresholds = Annotated[
    list[str], typer.Option("--set", help="A reason and its new threshold, e.g. noisy=12.", metavar="REASON=NUMBER")
]
Page = Annotated[Path | None, typer.Option("--out", "-o", help="The page; report.html in the folder if not given.")]
Voices = Annotated[Path | None, typer.Option(help="Also plant into these recordings.", metavar="FOLDER")]
Clips = Annotated[int, typer.Option(help="Synthetic clips per fault.", min=8)]
Seed = Annotated[int, typer.Option(help="Another seed is another audit.")]


def clean(source: Source, out: Out, preset: Preset = "emilia", workers: Count = None, ray: OnRay = False) -> None:
    """Decode, cut, measure and judge recordings. Run it again to go on; what is done is not done again."""
    from speechgpt2.data import steps as presets

    config = presets.load(preset)
    _check_kept_apart(source, out)
    _process(source, out, config, workers, compute=True, ray=ray)


def annotate(folder: RunFolder, workers: Count = None, ray: OnRay = False) -> None:
    """Label the kept clips of a run: words, phones and tones with their times, prosody, captions of the style."""
    source, config = _remembered(folder)
    _process(source, folder, config.annotated(), workers, compute=True, ray=ray)


def rethreshold(folder: RunFolder, changes: Thresholds) -> None:
    """Judge a run again by other thresholds, from the scores on file. Nothing is measured again."""
    source, config = _remembered(folder)
    config = config.moved(dict(_change(change) for change in changes))
    summary = _process(source, folder, config, 1, compute=False)
    pending = summary.reasons.get("pending", (0, 0.0))[0]
    if pending:
        print(f"{pending} clips were never measured by all steps: sg2 data clean {source} -o {folder} goes on")


def report(folder: RunFolder, out: Page = None) -> None:
    """Write a page about a run: what was kept and rejected and why, with sound and spectrograms.

    report.html in the folder is from then on kept up to date by the other commands.
    """
    from speechgpt2.data.clean.report import write
    from speechgpt2.data.pipeline.runner import Run

    source, config = _remembered(folder)
    target = out or folder / PAGE
    with working("drawing"), Run(source, folder, config.build()) as run:
        write(run, target)
    print(f"{target}: written")


def audit(clips: Clips = 40, recordings: Voices = None, seed: Seed = 0) -> None:
    """Plant known faults into clean speech, and print how many of them each filter finds (recall), and how many of
    those that it rejects have the fault (precision)."""
    from speechgpt2.data.audit import filters as auditing

    with working("planting and measuring"):
        found = auditing.audit(clips, recordings, seed)
    print(auditing.table(found))


def is_annotated(folder: Path) -> bool:
    """Whether `annotate` was begun on the run in `folder`."""
    return (folder / REMEMBERED).is_file() and (config := _remembered(folder)[1]) == config.annotated()


def forget(folder: Path, manifest: Path) -> None:
    """Take out of a run what its crawl took down, from the results on file; `manifest` if the crawl's was moved."""
    source, config = _remembered(folder)
    _process(source if source.exists() else manifest, folder, config, 1, compute=False)


def _process(
    source: Path, out: Path, config: PipelineConfig, workers: int | None, compute: bool, ray: bool = False
) -> Summary:
    from speechgpt2.data.clean import report as page
    from speechgpt2.data.pipeline import output, takedown
    from speechgpt2.data.pipeline.cluster import RayWorkers
    from speechgpt2.data.pipeline.runner import Run
    from speechgpt2.data.pipeline.workers import Workers

    if not source.exists():
        raise UserError(f"{source}: no such folder or manifest")
    with Run(source, out, config.build()) as run:
        _remember(out, source, config)
        takedown.note_run(source, out)
        with _progress() as progress:
            fresh = run.process(workers, progress, compute, RayWorkers if ray else Workers)
        if not fresh:
            print(f"{out}: nothing to do")
            return output.summarise(run)
        with working("writing"):
            if (out / PAGE).is_file():
                page.write(run, out / PAGE)
            summary = output.write(run)
    print(f"{out}: kept {summary.kept} clips, {summary.seconds / 3600:.3f} h; rejected {summary.rejected}")
    for reason, (count, seconds) in sorted(summary.reasons.items(), key=lambda item: -item[1][1]):
        print(f"  {reason:14s} {count:8d} clips {seconds / 3600:10.3f} h")
    return summary


@contextmanager
def _progress() -> Iterator[Report | None]:
    """A line on stderr with hours of sound per hour, if that is a terminal."""
    import time

    from rich.console import Console

    console, begun = Console(stderr=True), time.monotonic()
    if not console.is_terminal:
        yield None
        return
    with console.status("reading …") as status:

        def show(at: Any) -> None:
            speed = at.seconds / max(time.monotonic() - begun, 1e-3)
            status.update(f"{at.stages}: {at.clips} clips, {at.seconds / 3600:.2f} h, {speed:.0f} hours per hour")

        yield show


def _check_kept_apart(source: Path, out: Path) -> None:
    inside = out.resolve().is_relative_to(source.resolve()) if source.is_dir() else False
    if inside:
        raise UserError(f"{out} lies inside {source}: its own clips would be taken for recordings")


def _remember(out: Path, source: Path, config: PipelineConfig) -> None:
    """The source and the steps, for the commands that look at a run later."""
    import yaml

    from speechgpt2 import config as configs
    from speechgpt2.hub import write_atomically

    said = {"source": str(source.resolve()), **configs.to_dict(config)}
    text = yaml.safe_dump(said, sort_keys=False, allow_unicode=True)
    write_atomically(out / REMEMBERED, lambda scratch: scratch.write_text(text, encoding="utf-8"))


def _remembered(folder: Path) -> tuple[Path, PipelineConfig]:
    from speechgpt2 import config as configs
    from speechgpt2.data.steps import PipelineConfig

    path = folder / REMEMBERED
    if not path.is_file():
        raise UserError(f"{folder}: no run of sg2 data clean")
    said = configs.read(path)
    return Path(said.pop("source")), configs.from_dict(PipelineConfig, said, path.name)


def _change(text: str) -> tuple[str, float]:
    reason, _, number = text.partition("=")
    try:
        return reason, float(number)
    except ValueError:
        raise UserError(f"--set {text}: expected REASON=NUMBER, e.g. noisy=12") from None
