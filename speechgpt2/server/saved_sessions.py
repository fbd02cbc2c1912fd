"""Saved sessions on the server: whose they are, and one thread that writes all of them.

    engine's thread ──► SessionRecord.write ──► queue ──► thread ──► SessionFile
    event loop ────────►

A disk that is slow or full must not stop the audio: writing waits in a queue, and a failure is logged once.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

from speechgpt2.duplex.protocol import Engine
from speechgpt2.errors import UserError
from speechgpt2.server.api_errors import ApiError
from speechgpt2.server.config import ServerConfig
from speechgpt2.server.items import ItemList, item_from_saved
from speechgpt2.sessions.entries import Entry, Resumed, SavedSession
from speechgpt2.sessions.session_file import SessionFile
from speechgpt2.sessions.store import SessionFolder, SessionNotFound, new_session_id
from speechgpt2.types import Speech

PRUNE_INTERVAL = 3600.0  # seconds
CLOSE_TIMEOUT = 10.0  # seconds that the end of a session may take

Work: TypeAlias = "queue.SimpleQueue[tuple[SessionRecord, Entry | None]]"  # None: close the file
log = logging.getLogger("sg2.server")


class SessionRecord:
    """One session's file, which another thread writes. See `EntryWriter`.

    Args:
        id: The session's id.
        owner: The id of the API key that it belongs to.
        file: Its file.
        saved: What the file said when it was opened; None for a new session.
        work: The queue of the thread.

    Attributes:
        leased: Whether the engine writes to it, and closes it.
    """

    def __init__(self, id: str, owner: str, file: SessionFile, saved: SavedSession | None, work: Work):
        self.id, self.owner, self.saved, self.leased = id, owner, saved, False
        self._file, self._work, self._failed = file, work, False
        self._closed = threading.Event()

    def write(self, entry: Entry) -> None:
        """Append an entry, soon."""
        self._work.put((self, entry))

    def close(self) -> None:
        """Close the file, once everything is written."""
        self._work.put((self, None))

    def release(self) -> None:
        """Close the file unless the engine will."""
        if not self.leased:
            self.close()

    def wait_closed(self) -> bool:
        """Wait for the file to be closed. Returns whether it is."""
        return self._closed.wait(CLOSE_TIMEOUT)

    def perform(self, entry: Entry | None) -> None:
        """Write an entry, or close the file. For the thread that writes."""
        try:
            if entry is None:
                self._file.close()
            elif not self._failed:
                self._file.write(entry)
        except Exception as error:  # whatever it is, the thread goes on for the other sessions
            self._failed = True
            log.error("a session cannot be saved", extra={"fields": {"session": self.id, "reason": str(error)}})
        finally:
            if entry is None:
                self._file.close_unchanged()
                self._closed.set()


class SavedSessions:
    """The saved sessions of a server.

    Args:
        config: The server's settings.
        engine: The engine whose sessions are saved.
    """

    def __init__(self, config: ServerConfig, engine: Engine):
        self.config, self.engine = config, engine
        folder = config.sessions.folder
        self.store = None if folder is None else SessionFolder(folder)
        self._open: dict[str, SessionRecord] = {}
        self._work: Work = queue.SimpleQueue()
        if self.store is not None:
            engine.session_header("", config.model, "")  # computes what later sessions need
            threading.Thread(target=self._write, name="sessions", daemon=True).start()

    def create(self, owner: str) -> SessionRecord | None:
        """Begin to save a session; None if the server saves none, or cannot, which is logged."""
        if self.store is None:
            return None
        id = new_session_id()
        try:
            file = self.store.create(self.engine.session_header(id, self.config.model, owner))
        except (OSError, UserError) as error:
            log.error("a session cannot be saved", extra={"fields": {"session": id, "reason": str(error)}})
            return None
        return self._add(SessionRecord(id, owner, file, None, self._work))

    def resume(self, id: str, owner: str) -> SessionRecord:
        """Resume a saved session.

        Raises:
            ApiError: There is none of this client's (404), it is in use (409), or it cannot be resumed here (400).
        """
        store = self._check_owner(id, owner)
        try:
            file, saved = store.resume(id)
        except SessionNotFound:
            raise _not_found(id) from None
        except UserError as error:
            log.warning("a session cannot be resumed", extra={"fields": {"session": id, "reason": str(error)}})
            raise ApiError(400, f"The session cannot be resumed: {error}.", "session_unusable", "session_id") from None
        record = self._add(SessionRecord(id, owner, file, saved, self._work))
        record.write(Resumed(round(time.time(), 3)))
        return record

    def find_open(self, id: str, owner: str) -> SessionRecord | None:
        """Return the record of a session that is open here and belongs to this client."""
        record = self._open.get(id)
        return record if record is not None and record.owner == owner else None

    def load(self, id: str, owner: str) -> SavedSession:
        """Read a saved session, without its patches.

        Raises:
            ApiError: There is none of this client's (404), or it is damaged (400).
        """
        store = self._check_owner(id, owner)
        with _read_errors(id):
            return store.load(id, with_patches=False)

    def list(self, owner: str) -> Iterator[SavedSession]:
        """Yield the client's sessions, the latest first. Damaged ones are left out."""
        for id in self.store.ids() if self.store is not None else ():
            try:
                yield self.load(id, owner)
            except ApiError:
                continue

    def delete(self, id: str, owner: str) -> None:
        """Delete a session.

        Raises:
            ApiError: There is none of this client's (404), or it is in use (409).
        """
        store = self._check_owner(id, owner)
        try:
            store.delete(id)
        except SessionNotFound:
            raise _not_found(id) from None
        except UserError:
            raise ApiError(409, f"The session '{id}' is in use: close it first.", "session_in_use", "id") from None

    async def prune(self) -> None:
        """Delete sessions that are too old, every hour."""
        days = self.config.sessions.keep_days
        while self.store is not None and days:
            if count := await asyncio.to_thread(self.store.delete_older, days):
                log.info("old sessions were deleted", extra={"fields": {"count": count}})
            await asyncio.sleep(PRUNE_INTERVAL)

    def close(self) -> None:
        """Wait until all that was written is on the disk."""
        for record in list(self._open.values()):
            record.wait_closed()

    def _check_owner(self, id: str, owner: str) -> SessionFolder:
        store = self._require_store()
        with _read_errors(id):
            found = store.owner(id)
        if found != owner:
            raise _not_found(id)
        return store

    def _require_store(self) -> SessionFolder:
        if self.store is None:
            text = "This server saves no sessions: start it with --sessions FOLDER."
            raise ApiError(400, text, "sessions_not_saved", "session_id")
        return self.store

    def _add(self, record: SessionRecord) -> SessionRecord:
        self._open[record.id] = record
        return record

    def _write(self) -> None:
        while True:
            record, entry = self._work.get()
            record.perform(entry)
            if entry is None and self._open.get(record.id) is record:
                del self._open[record.id]


@contextmanager
def _read_errors(id: str) -> Iterator[None]:
    """Raise `ApiError` for a session that is not there (404) or cannot be read (400)."""
    try:
        yield
    except SessionNotFound:
        raise _not_found(id) from None
    except UserError as error:
        raise ApiError(400, f"The session cannot be read: {error}.", "session_unusable", "session_id") from None


def restore_items(items: ItemList, saved: SavedSession) -> tuple[tuple[str, ...], Speech | None]:
    """Take over the items of a saved session, except those of turns that it does not hold.

    Returns:
        The system messages among them, and the session's own greeting, if it has one.
    """
    from speechgpt2.engine.recording import settings_from_dict

    for entry in saved.items.values():
        if entry.turn is None or entry.turn in saved.turns:
            previous_id = entry.previous_id if entry.previous_id in items else None
            items.add(item_from_saved(entry.item, entry.turn), previous_id)
    system_messages = tuple(item.text for item in items if item.role == "system")
    greeting = settings_from_dict(saved.settings).greeting if saved.settings else None
    return system_messages, greeting


def _not_found(id: str) -> ApiError:
    """Return the error for a session that does not exist, or is somebody else's: a client cannot tell the two apart."""
    return ApiError(404, f"There is no saved session '{id[:64]}'.", "session_not_found", "session_id")
