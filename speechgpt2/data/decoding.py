"""Decode any audio file block by block in bounded memory.

    with open_audio(path) as file:
        for block in file.blocks(max_hours=12.0): ...       # float32 [N, channels]

ffmpeg, if it is installed, decodes what libsndfile cannot read (AAC, Opus in Matroska …). File names, declared types
and headers are not trusted.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import soundfile

BLOCK = 1 << 16  # sample frames decoded at a time
RATES = range(4_000, 384_001)  # Hz; anything else is a damaged header
MAX_CHANNELS = 16
COMPLETE = 0.98  # least share of the samples that the header states; some formats only estimate them
QUIETEST = 4 / 32768  # peak below which a file counts as silent
FFMPEG_RATE = 48_000  # output rate of ffmpeg: the highest one of the formats that need it
_ENDINGS = {"WAVEX": "wav", "RF64": "wav"}  # libsndfile's name of a format -> ending, where they differ


class Undecodable(Exception):
    """A file cannot be used.

    Attributes:
        reason: one word ("not-audio", "corrupt", "endless", "silent").
        detail: a line for people.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class AudioFile:
    """An open audio file.

    Attributes:
        rate: Hz.
        channels: their number.
        format: the container, as libsndfile or ffmpeg names it.
        ending: the file name's ending that fits the content.
        header_samples: sample frames that the header states; 0 if it states none.
        stream: the samples, float32 `[N, channels]` at a time.
    """

    rate: int
    channels: int
    format: str
    ending: str
    header_samples: int
    stream: Iterator[np.ndarray]

    def blocks(self, max_hours: float) -> Iterator[np.ndarray]:
        """Yield float32 `[N, channels]` to the end of the data. Raises `Undecodable` if it is not one recording."""
        samples, peak = 0, 0.0
        for block in self.stream:
            if not np.isfinite(block).all():
                raise Undecodable("corrupt", "contains samples that are NaN or infinite")
            samples += len(block)
            if samples > max_hours * 3600 * self.rate:
                raise Undecodable("endless", f"decodes to more than {max_hours:g} hours")
            peak = max(peak, float(np.abs(block).max(initial=0.0)))
            yield block
        if samples < COMPLETE * self.header_samples:
            raise Undecodable("corrupt", f"the header says {self.header_samples} samples, the file has {samples}")
        if peak <= QUIETEST:
            raise Undecodable("silent", f"contains {samples / self.rate:.1f} s of silence")


@contextmanager
def open_audio(path: Path) -> Iterator[AudioFile]:
    """Open a file, to be read once. Raises `Undecodable`."""
    try:
        file = soundfile.SoundFile(path)
    except (soundfile.SoundFileError, OSError):  # libsndfile may not know the container
        with _through_ffmpeg(path) as audio:
            yield audio
        return
    with file:
        if file.samplerate not in RATES or not 1 <= file.channels <= MAX_CHANNELS:
            raise Undecodable("corrupt", f"{file.samplerate} Hz and {file.channels} channels are not plausible")
        ending = _ENDINGS.get(file.format, file.format.lower())
        yield AudioFile(file.samplerate, file.channels, file.format, ending, file.frames, _read(file))


def _read(file: soundfile.SoundFile) -> Iterator[np.ndarray]:
    """Read to the end of the data, not to the end that the header states."""
    try:
        while len(block := file.read(BLOCK, dtype="float32", always_2d=True)):
            yield block
    except soundfile.SoundFileError as error:
        raise Undecodable("corrupt", f"decoding broke off ({error})") from None


@contextmanager
def _through_ffmpeg(path: Path) -> Iterator[AudioFile]:
    container = _container_of(path)
    if container is None or shutil.which("ffmpeg") is None:
        raise Undecodable("not-audio", "is not in a supported format; ffmpeg may help")
    demuxer, ending = container
    command = [
        "ffmpeg", "-v", "error", "-nostdin", "-xerror", "-f", demuxer, "-i", str(path.resolve()),
        "-map", "0:a:0", "-vn", "-ac", "1", "-ar", str(FFMPEG_RATE), "-f", "s16le", "pipe:1",
    ]  # fmt: skip
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors)
        try:
            yield AudioFile(FFMPEG_RATE, 1, demuxer.upper(), ending, 0, _piped(process, errors))
        finally:
            process.kill()
            process.communicate()


def _piped(process: subprocess.Popen[bytes], errors: IO[bytes]) -> Iterator[np.ndarray]:
    """Yield float32 `[N, 1]` of ffmpeg's 16-bit samples. Its error message takes precedence over follow-up errors."""
    assert process.stdout is not None
    while data := process.stdout.read(2 * BLOCK):
        yield np.frombuffer(data[: len(data) // 2 * 2], "<i2").astype(np.float32)[:, None] / 32768
    code = process.wait()
    errors.seek(0)
    message = errors.read(300).decode("utf-8", "replace").strip().splitlines()
    if message or code:
        raise Undecodable("corrupt", f"ffmpeg: {message[0]}" if message else f"ffmpeg ended with {code}")


def _container_of(path: Path) -> tuple[str, str] | None:
    """Return ffmpeg's demuxer and the ending, by the first bytes; None if it is not an audio container.

    ffmpeg is told the format. If it guessed, it would follow paths and URLs in a playlist.
    """
    with path.open("rb") as file:
        head = file.read(16)
    if head[4:8] == b"ftyp":
        return "mov", "m4a"
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska", "webm"
    if head[:4] == b"OggS":
        return "ogg", "ogg"
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:
        return "aac", "aac"
    return None
