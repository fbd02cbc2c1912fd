"""A folder of saved sessions, one file each.

store = SessionFolder(Path("sessions"))
file = store.create(header)                    # file.write(entry) as the conversation goes on
file, saved = store.resume("sess_…")           # in another process
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from speechgpt2.errors import UserError
from speechgpt2.sessions.entries import Header, SavedSession
from speechgpt2.sessions.session_file import SessionFile, read_header, read_session

SUFFIX = ".jsonl"
ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
DAY = 24 * 3600  # seconds


class SessionNotFound(UserError):
    """There is no saved session of this id."""


def new_session_id() -> str:
    """Return a random id, which cannot be guessed."""
    return f"sess_{secrets.token_hex(10)}"


class SessionFolder:
    """A folder of saved sessions. It is made, for its owner only, when the first session is saved.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def path(self, id: str) -> Path:
        """Return the file of a session, which need not exist.

        Raises:
            SessionNotFound: No session has such an id.
        """
        if not ID.fullmatch(id):
            raise SessionNotFound(f"no saved session {id[:64]!r} in {self.folder}")
        return self.folder / f"{id}{SUFFIX}"

    def create(self, header: Header) -> SessionFile:
        """Begin to save a session. Raises `UserError` if its file exists or cannot be written."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.folder}: {error.strerror}") from None
        return SessionFile(self.path(header.id), header)

    def resume(self, id: str) -> tuple[SessionFile, SavedSession]:
        """Open a session's file, to resume the session.

        Raises:
            SessionNotFound: There is none.
            UserError: It is damaged, or another process uses it.
        """
        file = SessionFile(self._existing(id))
        try:
            return file, file.load()
        except BaseException:
            file.close_unchanged()
            raise

    def owner(self, id: str) -> str:
        """Return whose session it is. Raises `SessionNotFound`, or `UserError` if it is damaged."""
        return read_header(self._existing(id)).owner

    def load(self, id: str, with_patches: bool = True) -> SavedSession:
        """Read a session, as `read_session` does. Raises `SessionNotFound`, or `UserError` if it is damaged."""
        return read_session(self._existing(id), with_patches)

    def ids(self) -> Iterator[str]:
        """Yield the ids of all sessions, the one that was written last first."""
        files = self.folder.glob(f"*{SUFFIX}") if self.folder.is_dir() else ()
        times = {path: _modified(path) for path in files if ID.fullmatch(path.stem)}
        yield from (path.stem for path in sorted(times, key=lambda path: (-times[path], path.name)))

    def delete(self, id: str) -> None:
        """Delete a session.

        Raises:
            SessionNotFound: There is none.
            UserError: A process uses it.
        """
        file = SessionFile(self._existing(id))
        self.path(id).unlink(missing_ok=True)
        file.close_unchanged()

    def delete_older(self, days: float) -> int:
        """Delete the sessions that nothing was written to for so many days. Returns their number."""
        count, end = 0, time.time() - days * DAY
        for id in [id for id in self.ids() if _modified(self.path(id)) < end]:
            with suppress(UserError):  # in use
                self.delete(id)
                count += 1
        return count

    def _existing(self, id: str) -> Path:
        path = self.path(id)
        if not path.is_file():
            raise SessionNotFound(f"no saved session {id!r} in {self.folder}")
        return path


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # deleted meanwhile
        return 0.0
