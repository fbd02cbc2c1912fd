"""The files of a data set, on a disk or in object storage, and their audio."""

from __future__ import annotations

import io
import re
from pathlib import PurePosixPath
from typing import IO

import numpy as np

from speechgpt2.audio import AudioReader
from speechgpt2.errors import MissingDependency, UserError

AUDIO = (".wav", ".flac", ".ogg", ".mp3", ".opus", ".m4a", ".aac", ".webm", ".aiff", ".aif")


class FileTree:
    """The files below a folder, or one file. `sizes` maps each name, relative to the folder, to its size in bytes.

    Args:
        path: A local path, or an address that fsspec knows, such as `s3://bucket/folder`.

    Raises:
        UserError: If there is no such file or folder, or if its kind of storage needs a package.
    """

    def __init__(self, path: str):
        import fsspec

        self.path = path
        try:
            self.fs, root = fsspec.core.url_to_fs(path)
        except ImportError as error:
            raise MissingDependency(f"{path}: {str(error).rstrip('.')}") from None
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None
        self.is_local = "file" in (self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,))
        if self.fs.isfile(root):
            self.root = str(PurePosixPath(root).parent)
            infos = {root: self.fs.info(root)}
        elif self.fs.isdir(root):
            self.root = root.rstrip("/")
            infos = self.fs.find(root, detail=True)
        else:
            raise UserError(f"{path}: no such file or folder")
        names = {name[len(self.root) :].lstrip("/"): info["size"] for name, info in sorted(infos.items())}
        self.sizes = {name: size for name, size in names.items() if not re.search(r"(^|/)\.", name)}

    def matching(self, *suffixes: str) -> list[str]:
        """Return the names that end in one of `suffixes`, sorted."""
        return [name for name in self.sizes if name.lower().endswith(suffixes)]

    def open(self, name: str) -> IO[bytes]:
        """Open a file for reading."""
        return self.fs.open(f"{self.root}/{name}", "rb")

    def read(self, name: str) -> bytes:
        """Return a file's content. Raises `UserError` if it is not in the folder."""
        if name not in self.sizes:
            raise UserError(f"{self.path}: there is no file {name}")
        with self.open(name) as file:
            return file.read()

    def text(self, name: str) -> str:
        """Return a file's text. Raises `UserError` if it is not UTF-8."""
        try:
            return self.read(name).decode("utf-8-sig")
        except UnicodeDecodeError:
            raise UserError(f"{self.path}: {name} is not UTF-8 text") from None


def decode_audio(data: bytes, name: str) -> np.ndarray:
    """Return the content of an audio file as `pcm [N]`, float32 at 24 kHz, channels averaged.

    Raises:
        UserError: If it is not audio, is cut off, holds no finite samples, or lasts more than an hour.
    """
    reader = AudioReader(io.BytesIO(data), name)
    pcm = np.concatenate(list(reader))
    if reader.warning:
        raise UserError(reader.warning)
    return pcm
