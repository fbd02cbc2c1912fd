"""Any file of sound -> samples, block by block in bounded memory: for the crawler, which looks, and the cleaning.

    with opened(path) as file:
        for block in file.blocks(max_hours=12.0): ...       # float32 [N, channels]

What libsndfile cannot read (AAC, Opus in Matroska …) goes through ffmpeg where that is installed. Neither a name nor a
declared type nor a header is believed.
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
WHOLE = 0.98  # of the samples that the header promises; formats without a table of contents estimate
QUIETEST = 4 / 32768  # a file that never exceeds it holds no sound
FFMPEG_RATE = 48_000  # what ffmpeg is asked for: the highest rate of the formats that need it
_ENDINGS = {"WAVEX": "wav", "RF64": "wav"}  # by libsndfile's name of the format, where that is no ending


class Undecodable(Exception):
    """A file holds nothing to use: `reason` is one word ("not-audio", "corrupt", "endless", "silent"), `detail` a line
    for people."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Media:
    """An open file.

    format    the container as libsndfile or ffmpeg names it
    ending    what the file should be named, from its content
    promised  sample frames by the header
    decoded   its samples, float32 [N, channels] at a time
    """

    rate: int
    channels: int
    format: str
    ending: str
    promised: int
    decoded: Iterator[np.ndarray]

    def blocks(self, max_hours: float) -> Iterator[np.ndarray]:
        """float32 [N, channels], to the end of the data. Errors: `Undecodable` where that is not one recording."""
        samples, peak = 0, 0.0
        for block in self.decoded:
            if not np.isfinite(block).all():
                raise Undecodable("corrupt", "holds samples that are no numbers")
            samples += len(block)
            if samples > max_hours * 3600 * self.rate:
                raise Undecodable("endless", f"decodes to more than {max_hours:g} hours")
            peak = max(peak, float(np.abs(block).max(initial=0.0)))
            yield block
        if samples < WHOLE * self.promised:
            raise Undecodable("corrupt", f"its header promises {self.promised} samples, it holds {samples}")
        if peak <= QUIETEST:
            raise Undecodable("silent", f"holds {samples / self.rate:.1f} s of nothing")


@contextmanager
def opened(path: Path) -> Iterator[Media]:
    """The file, to be read once. Errors: `Undecodable`."""
    try:
        file = soundfile.SoundFile(path)
    except (soundfile.SoundFileError, OSError):  # perhaps a container that libsndfile does not know
        with _through_ffmpeg(path) as media:
            yield media
        return
    with file:
        if file.samplerate not in RATES or not 1 <= file.channels <= MAX_CHANNELS:
            raise Undecodable("corrupt", f"{file.samplerate} Hz and {file.channels} channels are not believable")
        ending = _ENDINGS.get(file.format, file.format.lower())
        yield Media(file.samplerate, file.channels, file.format, ending, file.frames, _read(file))


def _read(file: soundfile.SoundFile) -> Iterator[np.ndarray]:
    """To the end of the data, not to the end that the header promises."""
    try:
        while len(block := file.read(BLOCK, dtype="float32", always_2d=True)):
            yield block
    except soundfile.SoundFileError as error:
        raise Undecodable("corrupt", f"decoding broke off ({error})") from None


@contextmanager
def _through_ffmpeg(path: Path) -> Iterator[Media]:
    container = _container_of(path)
    if container is None or shutil.which("ffmpeg") is None:
        raise Undecodable("not-audio", "is in no format that can be decoded")
    demuxer, ending = container
    command = [
        "ffmpeg", "-v", "error", "-nostdin", "-xerror", "-f", demuxer, "-i", str(path.resolve()),
        "-map", "0:a:0", "-vn", "-ac", "1", "-ar", str(FFMPEG_RATE), "-f", "s16le", "pipe:1",
    ]  # fmt: skip
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints)
        try:
            yield Media(FFMPEG_RATE, 1, demuxer.upper(), ending, 0, _piped(process, complaints))
        finally:
            process.kill()
            process.communicate()


def _piped(process: subprocess.Popen[bytes], complaints: IO[bytes]) -> Iterator[np.ndarray]:
    """float32 [N, 1] of ffmpeg's 16-bit samples; what it complains of counts before anything that follows from it."""
    assert process.stdout is not None
    while data := process.stdout.read(2 * BLOCK):
        yield np.frombuffer(data[: len(data) // 2 * 2], "<i2").astype(np.float32)[:, None] / 32768
    code = process.wait()
    complaints.seek(0)
    said = complaints.read(300).decode("utf-8", "replace").strip().splitlines()
    if said or code:
        raise Undecodable("corrupt", f"ffmpeg says: {said[0]}" if said else f"ffmpeg ended with {code}")


def _container_of(path: Path) -> tuple[str, str] | None:
    """ffmpeg's demuxer and the file's ending, by the first bytes; None for what is no container of sound.

    ffmpeg is told the format: left to guess, it would follow the paths and URLs in a playlist.
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
