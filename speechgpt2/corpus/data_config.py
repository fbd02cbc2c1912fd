"""The data of a training run: locations, weights, licences and held-out shares.

sg2 train lm STAGE.yaml --data run/shar --data data.yaml …

# data.yaml
- {path: run/shar, weight: 2}                      # drawn twice as often as by its number of utterances
- {path: recordings, licence: own, lang: en}       # your own recordings, without a licence
- {path: "s3://bucket/shards", licences: [any]}    # every licence is accepted
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from speechgpt2 import config as configs
from speechgpt2.errors import UserError

# Values that stand for no SPDX identifier. `ANY_LICENCE` is for the list of accepted licences only.
ANY_LICENCE, OWN_LICENCE, SYNTHETIC_LICENCE = "any", "own", "synthetic"
OPEN = (
    "CC0-1.0", "CC-PDM-1.0", "CC-BY-2.0", "CC-BY-2.5", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-SA-2.0", "CC-BY-SA-2.5",
    "CC-BY-SA-3.0", "CC-BY-SA-4.0", "Apache-2.0", "MIT",
)  # fmt: skip


@dataclass(frozen=True)
class DataConfig:
    """One source of data.

    Attributes:
        path: a folder, a file, or an address that fsspec knows. docs/training.md lists the formats.
        weight: its items are drawn so much more often than those of a source of weight 1.
        licence: the licence of items that state none; "own" if the recordings are yours.
        licences: accepted SPDX identifiers; "own" and "synthetic" are always accepted, ["any"] accepts everything.
        lang: the language of items that state none.
        held_out: share of the speakers that are held out; without speakers, of the sources (pages, books, files).
    """

    path: str
    weight: float = 1.0
    licence: str = ""
    licences: tuple[str, ...] = OPEN
    lang: str = ""
    held_out: float = 0.05

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise UserError(f"weight must be above 0, not {self.weight}")
        if not 0 <= self.held_out < 1:
            raise UserError(f"held_out must be a share in 0…1, not {self.held_out}")


def read_data_configs(paths: Sequence[str], licence: str = "") -> list[DataConfig]:
    """Read the sources of `--data`: each argument is a location, or a YAML file with a list of sources.

    Args:
        paths: The arguments.
        licence: The licence of items that state none, if the YAML file does not give one.

    Raises:
        UserError: If there are none, or a YAML file is not such a list.
    """
    if not paths:
        raise UserError("give --data, what is trained on; docs/training.md lists the formats")
    sources: list[DataConfig] = []
    for path in paths:
        if not path.endswith((".yaml", ".yml")):
            sources.append(DataConfig(path, licence=licence))
            continue
        entries = configs.read(path)
        if not isinstance(entries, list):
            raise UserError(f"{path}: expected a list of sources, such as '- {{path: run/shar, weight: 2}}'")
        for number, entry in enumerate(entries):
            values = {"licence": licence, **entry} if isinstance(entry, dict) else entry
            source = configs.from_dict(DataConfig, values, f"{Path(path).name}[{number}]")
            sources.append(source)
    return sources
