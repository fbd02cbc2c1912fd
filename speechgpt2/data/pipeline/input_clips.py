"""Input of a run: the clips of a folder of recordings or of a manifest, one at a time, in a stable order.

No file name and no line of a manifest can end a run: a file or line that cannot be used becomes a rejected clip with a
reason. A file `talk.txt` beside `talk.mp3` is its transcript.
"""

from __future__ import annotations

import hashlib
import os
import re
import urllib.parse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from speechgpt2.data.pipeline.clip_audio import Workspace
from speechgpt2.data.pipeline.results import Results
from speechgpt2.data.pipeline.takedown import REASON
from speechgpt2.data.record import AudioInfo, Clip, ClipText, Decision, Source
from speechgpt2.errors import UserError
from speechgpt2.hub import sha256_of

STAGE, STAGE_VERSION = "input", 1
NOT_AUDIO = {".txt", ".json", ".jsonl", ".yaml", ".yml", ".csv", ".tsv", ".md", ".html", ".xml", ".gz", ".db"}
SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}")  # ids that may become file names in an archive
LONGEST_LINE = 16 << 20  # bytes of a manifest's line
LONGEST_TEXT = 1 << 20  # bytes of a transcript


def read(source: Path, results: Results) -> Iterator[Clip]:
    """Yield the clips of a folder or a manifest (JSON lines). Raises `UserError` if it does not exist."""
    if not source.is_dir() and not source.is_file():
        raise UserError(f"{source}: no such folder or manifest")
    results.clear_ids()
    for clip in _folder(source, results) if source.is_dir() else _manifest(source, results):
        detail = results.takedown_reason(clip)
        if detail is not None:
            clip = _rejected_clip(clip.id, REASON, clip.source.url, detail)
        if results.add_id(clip.id):
            yield clip
        else:
            renamed = replace(clip, id=_short_hash(f"{clip.id} again {clip.to_json()}".encode()))
            yield _reject(renamed, "id-twice", f"another clip is named {clip.id}") if clip.kept else renamed
    for id, url, detail in results.takedowns():  # those that the manifest no longer lists
        if results.add_id(id):
            yield _rejected_clip(id, REASON, url, detail)


def root_of(source: Path) -> Path:
    """Return the folder that paths in clips are relative to."""
    return source if source.is_dir() else source.parent


def _folder(root: Path, results: Results) -> Iterator[Clip]:
    for path in _walk(root):
        name = path.relative_to(root)
        try:
            text = str(name).encode("utf-8").decode()
        except UnicodeEncodeError:
            yield _rejected_clip(_short_hash(os.fsencode(name)), "name", _url(name), "its name is not UTF-8")
            continue
        clip = Clip(_id_of(text), audio=AudioInfo(path=text), source=Source(url=_url(name)))
        yield _with_text(_with_hash(clip, path, results), path)


def _walk(folder: Path) -> Iterator[Path]:
    """Yield files below `folder` that may hold audio, in the order of their names.

    Links to folders are not followed.
    """
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: os.fsencode(entry.name))
    for entry in ordered:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path))
        elif entry.is_file() and Path(entry.name).suffix.lower() not in NOT_AUDIO:
            yield Path(entry.path)


def _with_text(clip: Clip, path: Path) -> Clip:
    """Add the transcript from the file of the same name with the ending .txt."""
    text_file = path.with_suffix(".txt")
    if not clip.kept or not text_file.is_file():
        return clip
    with text_file.open("rb") as file:
        raw = file.read(LONGEST_TEXT + 1)
    try:
        text = raw.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        return _reject(clip, "text", f"{text_file.name} is not UTF-8")
    if len(raw) > LONGEST_TEXT:
        return _reject(clip, "text", f"{text_file.name} is larger than {LONGEST_TEXT} bytes")
    return replace(clip, text=ClipText(raw=text))


def _manifest(manifest: Path, results: Results) -> Iterator[Clip]:
    root = manifest.parent
    with manifest.open("rb") as file:
        number = 0
        while line := file.readline(LONGEST_LINE):
            number += 1
            if line.strip():
                yield _clip_of_line(line, number, root, results)


def _clip_of_line(line: bytes, number: int, root: Path, results: Results) -> Clip:
    where = f"line {number}"
    try:
        clip = Clip.from_json(line.decode("utf-8"))
        clip.to_json().encode("utf-8")  # JSON allows lone surrogates and NaN
    except ValueError as error:
        problem = "is not UTF-8" if isinstance(error, UnicodeError) else str(error)
        return _rejected_clip(f"line-{number:09d}", "manifest", "", f"{where}: {problem}"[:300])
    if SAFE_ID.fullmatch(clip.id) is None:
        clip = replace(clip, id=_short_hash(clip.id.encode()))
    if not clip.kept:
        return clip
    path = Workspace(root, root).source(clip.audio.path)
    if path is None:
        return _reject(clip, "path", f"{where}: its path is not below the manifest's folder")
    if not path.is_file():
        return _reject(clip, "unreadable", f"{where}: no file {clip.audio.path}")
    return clip if clip.source.sha256 else _with_hash(clip, path, results)


def _with_hash(clip: Clip, path: Path, results: Results) -> Clip:
    """Add the hash of the file, which is read only if it has changed since the last run."""
    try:
        status = path.stat()
        sha256 = results.file_hash(str(path), status.st_size, status.st_mtime_ns)
        if sha256 is None:
            sha256 = sha256_of(path)
            results.store_file_hash(str(path), status.st_size, status.st_mtime_ns, sha256)
    except (OSError, ValueError) as error:
        return _reject(clip, "unreadable", str(getattr(error, "strerror", None) or error))
    return replace(clip, source=replace(clip.source, sha256=sha256))


def _id_of(name: str) -> str:
    """Return a readable name with a hash that makes it unique."""
    plain = re.sub(r"[^A-Za-z0-9]+", "-", Path(name).with_suffix("").as_posix()).strip("-")[-60:].strip("-")
    return f"{plain}-{_short_hash(name.encode())}" if plain else _short_hash(name.encode())


def _short_hash(name: bytes) -> str:
    return hashlib.sha256(name).hexdigest()[:10]


def _url(name: Path) -> str:
    return "file:" + urllib.parse.quote(os.fsencode(name))


def _rejected_clip(id: str, reason: str, url: str, detail: str) -> Clip:
    return _reject(Clip(id, source=Source(url=url)), reason, detail)


def _reject(clip: Clip, reason: str, detail: str) -> Clip:
    decision = Decision(STAGE, STAGE_VERSION, False, reason=reason, detail=detail)
    return replace(clip, decisions=(*clip.decisions, decision))
