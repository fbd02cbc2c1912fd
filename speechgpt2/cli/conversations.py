"""`sg2 data synthesize`: conversations of two speakers on two channels, from a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipeFile = Annotated[Path, typer.Argument(help="What to make: see docs/synthesize.md.", metavar="RECIPE.YAML")]
Out = Annotated[
    Path, typer.Option("--out", "-o", help="The folder of the conversations, new or begun.", metavar="FOLDER")
]
Workers = Annotated[int, typer.Option(min=1, help="Processes; they do not change the result.")]


def synthesize(recipe: RecipeFile, out: Out, workers: Workers = 2) -> None:
    """Make spoken conversations: scripts, voices, timing, places, checks. A build that was stopped goes on.

    What comes out can be heard (audio/), cleaned and annotated (sg2 data clean FOLDER/clips.jsonl), read by Lhotse
    (cuts.jsonl.gz) and learnt from (sg2 train lm --corpus FOLDER).
    """
    from rich.console import Console
    from rich.progress import Progress

    from speechgpt2 import config
    from speechgpt2.data.conversations.build import Recipe, build

    asked = config.load(Recipe, recipe)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("conversations", total=asked.conversations)
        count, hours = build(asked, out, workers, lambda done: progress.update(task, completed=done))
    print(f"{out}: {count} conversations, {hours:.2f} hours; {asked.conversations - count} rejected")
