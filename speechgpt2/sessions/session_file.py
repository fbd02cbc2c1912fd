"""One session's file: a line for each entry, with a checksum, appended while the conversation goes on.

    {"crc32":"5a1c09fe","type":"turn", …}

A process that is killed loses at most the line that it writes: a last line without its end does not count. Every other
line that does not fit its checksum is an error, which names the line.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from speechgpt2 import hub
from speechgpt2.errors import UserError
from speechgpt2.sessions.entries import (
    VERSION,
    Entry,
    Header,
    Removed,
    SavedSession,
    TurnBlock,
    WireItem,
    WireItemRemoved,
    from_dict,
    to_dict,
)

MAX_BYTES = 2**30  # of a file; an hour of speech takes some 1.5 MB


class SessionFile:
    """A session's file, open for writing. Another process cannot open it meanwhile.

    Args:
        path: The file.
        header: Its first line, for a new one; None for one that exists.

    Raises:
        UserError: It exists already, is in use, or cannot be written.
    """

    def __init__(self, path: Path, header: Header | None = None):
        self.path = path
        flags = os.O_CREAT | os.O_EXCL if header is not None else 0
        try:
            self._descriptor: int | None = os.open(path, flags | os.O_RDWR | os.O_APPEND, 0o600)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None
        if not _lock(self._descriptor):
            os.close(self._descriptor)
            raise UserError(f"{path.stem}: another process uses this session")
        self._has_turns = self._deleted = False
        if header is not None:
            self._no_speech = header.no_speech
            self.write(header)
        else:
            self._drop_incomplete_line()

    def load(self) -> SavedSession:
        """Read what the file says so far. Raises `UserError` if it is damaged."""
        saved = read_session(self.path)
        self._no_speech, self._has_turns = saved.header.no_speech, bool(saved.turns)
        return saved

    def write(self, entry: Entry) -> None:
        """Append an entry. It is complete for other processes when this returns; nothing is written after `close`.

        Raises:
            OSError: The disk is full, or has failed.
        """
        if self._descriptor is None:
            return
        self._has_turns |= isinstance(entry, TurnBlock)
        self._deleted |= isinstance(entry, WireItemRemoved) or (isinstance(entry, Removed) and entry.deleted)
        line = to_line(entry, self._no_speech)
        while line:
            line = line[os.write(self._descriptor, line) :]

    def close(self) -> None:
        """Close the file. One without turns is removed; lines about deleted turns and items leave the file."""
        if self._descriptor is None:
            return
        try:
            if not self._has_turns:
                self.path.unlink(missing_ok=True)
            elif self._deleted:
                self._erase_deleted()
        finally:
            self.close_unchanged()

    def close_unchanged(self) -> None:
        """Close the file as it is."""
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = None

    def _drop_incomplete_line(self) -> None:
        assert self._descriptor is not None
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole and whole < len(data):  # without any whole line, `load` says what is wrong
            os.ftruncate(self._descriptor, whole)

    def _erase_deleted(self) -> None:
        numbers, ids = set[int](), set[str]()
        for entry in read_entries(self.path):
            numbers.update(entry.numbers if isinstance(entry, Removed) and entry.deleted else ())
            ids.update([entry.id] if isinstance(entry, WireItemRemoved) else ())

        def keeps(entry: Entry) -> bool:
            if isinstance(entry, WireItem):
                return entry.item["id"] not in ids
            return not isinstance(entry, TurnBlock) or entry.number not in numbers

        kept = b"".join(to_line(entry, self._no_speech) for entry in read_entries(self.path) if keeps(entry))
        hub.write_atomically(self.path, lambda scratch: scratch.write_bytes(kept))
        self.path.chmod(0o600)


def to_line(entry: Entry, no_speech: int) -> bytes:
    """Return an entry as a line with its checksum."""
    text = json.dumps(to_dict(entry, no_speech), ensure_ascii=False, separators=(",", ":"))
    body = text.encode(errors="replace")
    return b'{"crc32":"%08x",' % zlib.crc32(body) + body[1:] + b"\n"


def write_session(path: Path, entries: Sequence[Entry]) -> None:
    """Write a whole session, header first, in place of the file. Raises `UserError` if it cannot be written."""
    header = entries[0]
    assert isinstance(header, Header)
    lines = b"".join(to_line(entry, header.no_speech) for entry in entries)
    hub.write_atomically(path, lambda scratch: scratch.write_bytes(lines))
    path.chmod(0o600)


def read_header(path: Path) -> Header:
    """Read a file's first line. Raises `UserError` if it is absent or damaged."""
    return _take_header(path, read_entries(path))


def read_session(path: Path, with_patches: bool = True) -> SavedSession:
    """Read a file.

    Args:
        path: The file.
        with_patches: Whether to decode its patches. What a list says of a session needs none.

    Raises:
        UserError: It is absent, of another version, or damaged; the error names the line.
    """
    entries = read_entries(path, with_patches)
    header = _take_header(path, entries)
    saved = SavedSession(header, updated_at=header.created_at)
    for entry in entries:
        saved.add(entry)
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        saved.incomplete = file.read(1) != b"\n"
    return saved


def read_entries(path: Path, with_patches: bool = True) -> Iterator[Entry]:
    """Yield the entries of a file, without a last line that was cut off. Raises `UserError` if a line is damaged."""
    header: Header | None = None
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: too large for a saved session")
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    return
                entry = _parse(line, header, with_patches, f"{path}, line {number}")
                header = entry if isinstance(entry, Header) else header
                yield entry
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def _take_header(path: Path, entries: Iterator[Entry]) -> Header:
    header = next(entries, None)
    if not isinstance(header, Header):
        raise UserError(f"{path}: not a saved session, or cut off within its first line")
    return header


def _parse(line: bytes, header: Header | None, with_patches: bool, where: str) -> Entry:
    try:
        values = json.loads(line)
        checksum = int(values.pop("crc32"), 16)
        body = b"{" + line[len('{"crc32":"00000000",') : -1]  # as `to_line` has it
        if checksum != zlib.crc32(body):
            raise ValueError("checksum")
        version = values.get("version") if header is None else VERSION
        if version in (VERSION, None):
            return from_dict(values, header, with_patches)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, IndexError):
        raise UserError(f"{where}: damaged; a saved session must not be edited") from None
    raise UserError(f"{where}: version {version} of the format; this release reads {VERSION}")


def _lock(descriptor: int) -> bool:
    """Keep other processes out, until the file is closed or the process ends."""
    with suppress(ImportError):  # Windows has no such locks
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True
