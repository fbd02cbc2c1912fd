"""A takedown reaches everything that was derived from its source, and nothing else."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import tarfile
import zlib
from pathlib import Path

import pytest
import soundfile
import yaml
from typer.testing import CliRunner

from speechgpt2.cli import app
from speechgpt2.data.crawl.takedown import take_down
from speechgpt2.data.pipeline import scores, shar
from speechgpt2.data.pipeline.results import Results
from speechgpt2.data.pipeline.takedown import runs_of, taken_down
from speechgpt2.types import SAMPLE_RATE
from tests import needs
from tests.data.clean.test_measures import voice

needs.module("pyarrow", "data")


def sg2(*words: str | Path, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["data", *map(str, words)])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def crawled(tmp_path) -> Path:
    """A folder of three voices, crawled, cleaned and reported on; `gone` is the one to be taken down."""
    (tmp_path / "voices").mkdir()
    for number, name in enumerate(("stays", "gone", "too")):
        soundfile.write(tmp_path / "voices" / f"{name}.wav", voice(110 + 40 * number, 4.0, number), SAMPLE_RATE)
    seed = {"kind": "folder", "url": "voices", "licence": "CC0-1.0"}
    (tmp_path / "seeds.yaml").write_text(yaml.safe_dump({"contact": "nobody@localhost", "seeds": [seed]}))
    sg2("crawl", tmp_path / "seeds.yaml", "-o", tmp_path / "crawl")
    sg2("clean", tmp_path / "crawl" / "manifest.jsonl", "-o", tmp_path / "run", "--workers", "1")
    sg2("annotate", tmp_path / "run", "--workers", "1")
    sg2("report", tmp_path / "run")
    return tmp_path


def source_of(folder: Path, name: str) -> dict[str, str]:
    """Of a recording: its id in the crawl, its hash, and the name of its standard recording in the run."""
    with (folder / "crawl" / "manifest.jsonl").open() as lines:
        record = next(row for row in map(json.loads, lines) if row["source"]["url"].endswith(f"{name}.wav"))
    with (folder / "run" / "work" / "clips.jsonl").open() as lines:
        clip = next(row for row in map(json.loads, lines) if row["id"].startswith(record["id"]))
    return {"id": record["id"], "sha256": record["source"]["sha256"], "standard": clip["audio"]["pcm_hash"]}


def everything(folder: Path) -> dict[str, bytes]:
    """All bytes below a folder by name, with what is packed in them unpacked."""
    found = {}
    for path in (path for path in folder.rglob("*") if path.is_file()):
        name, data = str(path.relative_to(folder)), path.read_bytes()
        if path.suffix == ".gz":
            data = zlib.decompress(data, 47)
        if path.name == "results.db":
            with sqlite3.connect(path) as database:
                rows = database.execute("SELECT outcome FROM results").fetchall()
            data += b"".join(zlib.decompress(outcome) for (outcome,) in rows)
        if path.suffix == ".parquet":
            data += json.dumps(list(scores.read(path))).encode()
        found[name] = data
    return found


def where(folder: Path, needle: bytes) -> set[str]:
    return {name for name, data in everything(folder).items() if needle in data or needle.decode("latin1") in name}


def audio_of(folder: Path, id: str) -> bytes:
    """Bytes that only the sound of a kept clip has, as they lie in the shards."""
    for archive in (folder / "run" / "shar").glob("*.tar"):
        with tarfile.open(archive) as members:
            for member in members:
                if member.name.startswith(id) and member.name.endswith(".flac"):
                    data = members.extractfile(member)
                    assert data is not None
                    return data.read()[-400:-200]
    raise AssertionError(f"{id} is in no shard")


def test_takedown_leaves_no_trace(crawled):
    gone, stays = source_of(crawled, "gone"), source_of(crawled, "stays")
    clip_audio, beginning = audio_of(crawled, gone["id"]), audio_of(crawled, stays["id"])
    derived = re.compile(f"{gone['id']}-[0-9]".encode())  # the ids of its clips
    assert where(crawled / "run", clip_audio) == {"shar/recording.000000.tar"}
    assert where(crawled, gone["standard"].encode()) >= {"run/work/results.db", "run/work/clips.jsonl"}
    standard = (crawled / "run" / "work" / "audio" / gone["standard"][:2] / f"{gone['standard']}.flac").read_bytes()

    said = sg2("takedown", crawled / "voices" / "gone.wav", crawled / "crawl")
    assert "removed 1 recordings" in said and "kept 2 clips" in said
    for needle in (clip_audio, standard[-400:-200], gone["standard"].encode()):
        assert where(crawled / "crawl", needle) | where(crawled / "run", needle) == set()
    assert not any(derived.search(data) for data in everything(crawled / "run").values())
    with sqlite3.connect(crawled / "crawl" / "frontier.db") as database:
        query = "SELECT facts FROM link JOIN item ON child = id WHERE url LIKE '%gone.wav'"
        assert database.execute(query).fetchall() == [("{}",)]  # what its source said of it
    # Its id and hash stay where they keep it away.
    assert where(crawled / "run", gone["sha256"].encode()) <= {"work/results.db"}
    (record,) = [json.loads(line) for line in (crawled / "run" / "rejected.jsonl").open()]
    assert record["id"] == gone["id"] and record["decisions"][0]["reason"] == "taken-down"
    page = (crawled / "run" / "report.html").read_text()
    assert page.count("<audio") == 2 and "taken-down" in page
    assert audio_of(crawled, stays["id"]) == beginning
    assert [clip.id[:20] for clip, _ in shar.read(crawled / "run" / "shar")] == sorted(
        source_of(crawled, name)["id"] for name in ("stays", "too")
    )


def test_taken_down_source_does_not_come_back(crawled):
    gone = source_of(crawled, "gone")
    before = (crawled / "crawl" / "manifest.jsonl").read_text()
    sg2("takedown", crawled / "voices" / "gone.wav", crawled / "crawl")
    assert "nothing to do" in sg2("annotate", crawled / "run", "--workers", "1")
    # Neither by an old manifest with the file beside it, nor under another name.
    (crawled / "crawl" / "manifest.jsonl").write_text(before)
    record = next(json.loads(line) for line in before.splitlines() if gone["id"] in line)
    copy = crawled / "crawl" / record["audio"]["path"]
    copy.parent.mkdir(exist_ok=True)
    shutil.copy(crawled / "voices" / "gone.wav", copy)
    renamed = {**record, "id": "another", "source": {"url": "https://example.org/", "sha256": gone["sha256"]}}
    with (crawled / "crawl" / "manifest.jsonl").open("a") as file:
        file.write(json.dumps(renamed) + "\n")
    assert "kept 2 clips" in sg2("annotate", crawled / "run", "--workers", "1")
    rejected = [json.loads(line) for line in (crawled / "run" / "rejected.jsonl").open()]
    assert [(row["id"], row["decisions"][-1]["reason"]) for row in rejected] == [
        (gone["id"], "taken-down"), ("another", "taken-down"),
    ]  # fmt: skip
    assert not where(crawled / "run", gone["standard"].encode())


@pytest.mark.parametrize("later", ["by itself", "as it is named"])
def test_moved_run_applies_the_takedown_later(crawled, later):
    gone = source_of(crawled, "gone")
    (crawled / "run").rename(crawled / "moved")
    said = sg2("takedown", crawled / "voices" / "gone.wav", crawled / "crawl", code=2)
    assert "not removed everywhere" in said and "run does not exist" in said
    assert where(crawled / "moved", gone["standard"].encode())
    if later == "by itself":
        assert "kept 2 clips" in sg2("annotate", crawled / "moved", "--workers", "1")
        assert runs_of(crawled / "crawl") == [crawled / "run", crawled / "moved"]
    else:
        (crawled / "crawl" / "runs.txt").unlink()
        sg2("takedown", crawled / "voices" / "gone.wav", crawled / "crawl", "--run", crawled / "moved")
    assert not where(crawled / "moved", gone["standard"].encode())


def test_killed_takedown_is_repeated(crawled):
    """After the takedown in the crawl, and after half of the recordings were deleted."""
    gone = source_of(crawled, "gone")
    take_down(str(crawled / "voices" / "gone.wav"), crawled / "crawl")
    (crawled / "run" / "work" / "audio" / gone["standard"][:2] / f"{gone['standard']}.flac").unlink()
    assert "kept 2 clips" in sg2("annotate", crawled / "run", "--workers", "1")
    assert not where(crawled / "run", gone["standard"].encode())


def test_results_of_unknown_sources_are_computed_again(crawled):
    path = crawled / "run" / "work" / "results.db"
    with sqlite3.connect(path) as database:
        database.execute("UPDATE results SET source = NULL")
        database.execute("DELETE FROM recordings")
    results = Results(path)
    results.take_down(taken_down(crawled / "crawl" / "manifest.jsonl"), crawled / "run" / "work" / "audio")
    assert list(results.times())  # nothing was taken down
    results.close()
    sg2("takedown", crawled / "voices" / "gone.wav", crawled / "crawl")
    assert "kept 2 clips" in sg2("annotate", crawled / "run", "--workers", "1")
