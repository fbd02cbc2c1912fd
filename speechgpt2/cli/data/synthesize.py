"""`sg2 data synthesize`: conversations of two speakers on two channels, from a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipeFile = Annotated[Path, typer.Argument(help="A recipe: see docs/synthesize.md.", metavar="RECIPE.YAML")]
Out = Annotated[
    Path, typer.Option("--out", "-o", help="Folder of the conversations; a stopped build resumes.", metavar="FOLDER")
]
LocalWorkers = Annotated[int, typer.Option(min=1, help="Number of processes; the result does not depend on it.")]


def synthesize(recipe: RecipeFile, out: Out, workers: LocalWorkers = 2) -> None:
    """Synthesize two-channel conversations: scripts, voices, timing, acoustics, checks.

    The folder holds audio/, records for `sg2 data clean FOLDER/clips.jsonl`, Lhotse cuts (cuts.jsonl.gz), and a corpus
    for `sg2 train lm --data FOLDER`. A stopped build resumes.
    """
    from rich.console import Console
    from rich.progress import Progress

    from speechgpt2 import config
    from speechgpt2.data.conversations.build import Recipe, build

    settings = config.load(Recipe, recipe)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("conversations", total=settings.conversations)
        count, hours = build(settings, out, workers, lambda count: progress.update(task, completed=count))
    print(f"{out}: {count} conversations, {hours:.2f} hours; {settings.conversations - count} rejected")
