"""Files of fixed content from the web: announced, resumed where a download broke off, and checked by SHA-256."""

from __future__ import annotations

import http.client
import os
import shutil
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from speechgpt2.errors import UserError
from speechgpt2.hub import sha256_of

TIMEOUT = 60.0  # seconds without an answer
BLOCK = 1 << 20


def cache_folder() -> Path:
    """Where downloads are kept: ``$XDG_CACHE_HOME/speechgpt2``, else ``~/.cache/speechgpt2``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "speechgpt2"


@dataclass(frozen=True)
class RemoteFile:
    """One file of known content; `size` in bytes."""

    url: str
    sha256: str
    size: int

    @property
    def name(self) -> str:
        """The last part of the address."""
        return self.url.rsplit("/", 1)[-1]

    def check(self, path: Path, what: str) -> None:
        """Compare a file on disk with this one.

        Raises:
            UserError: It is missing, cut short or another one. The message says that it should be `what`.
        """
        if not path.is_file():
            raise UserError(f"{path}: no such file; it should be {what}")
        if path.stat().st_size < self.size:
            raise UserError(f"{path}: cut short, {path.stat().st_size} of {self.size} bytes; it should be {what}")
        if sha256_of(path) != self.sha256:
            raise UserError(f"{path}: another version, or damaged (its SHA-256 differs); it should be {what}")

    def fetch(self, folder: Path, what: str) -> Path:
        """Return the checked file in `folder`; download it if it is not there.

        Args:
            folder: Is created if need be.
            what: Name and licence of the content, for the announcement on stderr and for errors.

        Raises:
            UserError: It cannot be downloaded, or the file there is another one.
        """
        path = folder / self.name
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f"{self.name}.part")
            print(f"downloading {self.url} to {folder} ({what}) …", file=sys.stderr, flush=True)
            self._download(partial)
            if sha256_of(partial) != self.sha256:
                partial.unlink()
                raise UserError(f"{self.url}: not the expected file (its SHA-256 differs); it should be {what}")
            os.replace(partial, path)
        self.check(path, what)
        return path

    def _download(self, partial: Path) -> None:
        """Append what is missing to `partial`."""
        have = partial.stat().st_size if partial.exists() else 0
        if have >= self.size:
            return
        request = urllib.request.Request(self.url, headers={"Range": f"bytes={have}-"} if have else {})
        reason = "the connection was closed"
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                resumed = answer.status == http.HTTPStatus.PARTIAL_CONTENT
                with partial.open("ab" if resumed else "wb") as file:
                    shutil.copyfileobj(answer, file, BLOCK)
        except urllib.error.HTTPError as error:
            raise UserError(f"{self.url}: cannot be downloaded ({error})") from None
        except (OSError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
        have = partial.stat().st_size if partial.exists() else 0
        if have < self.size:
            raise UserError(
                f"{self.url}: {have} of {self.size} bytes were downloaded ({reason}); run the command again to go on"
            )
