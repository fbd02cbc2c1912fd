"""Decode any audio file block by block, in bounded memory.

    with open_media(path, "question.m4a") as media:
        for block in media.blocks: ...                   # float32 [N, channels] at media.rate Hz
        print(media.warning)                             # "is truncated: …", or None

libsndfile reads WAV, FLAC, OGG and MP3. PyAV, which contains FFmpeg (the extra `media`), decodes other formats: AAC and
ALAC in M4A, Opus in WebM, WMA, AMR, and the audio of videos. The content of a file decides, not its name.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile

from speechgpt2.errors import MissingDependency, UserError
from speechgpt2.extras import require

BLOCK = 1 << 13  # sample frames decoded at a time; libsndfile loses the block in which a file breaks off
RATES = range(1_000, 768_001)  # Hz; another rate means a damaged header, and resampling would need much memory
MAX_CHANNELS = 64
COMPLETE = 0.98  # smallest share of the stated length in a complete file: some formats only estimate their length
SHORTEST_LOSS = 0.1  # seconds of audio that must be missing before a file counts as truncated
UNKNOWN_SIZE = 0x7FFF0000  # a WAV header with a larger size was written before the size was known

# What FFmpeg may open: files that hold audio. Playlists are left out, because they name other files and addresses.
CONTAINERS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,avi,caf,dsf,eac3,flac,flv,m4v,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mp3,mpc,"
    "mpc8,mpeg,mpegts,oga,ogg,tak,tta,w64,wav,wv"
)


class Media:
    """An open audio file.

    Attributes:
        rate: Hz.
        blocks: Its samples, float32 `[N, channels]` at a time. Can be read once.
        warning: What is wrong with the file, set after the last block; None if nothing is.
    """

    def __init__(self, rate: int, blocks: Iterator[np.ndarray], promised: float):
        self.rate, self.promised = rate, promised
        self.warning: str | None = None
        self.blocks = self._counted(blocks)

    def _counted(self, blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the blocks, then compare their length with the stated one, in seconds."""
        samples = 0
        for block in blocks:
            samples += len(block)
            yield block
        seconds = samples / self.rate
        if seconds < COMPLETE * self.promised and seconds < self.promised - SHORTEST_LOSS:
            self.warning = f"is truncated: {seconds:.1f} s of {self.promised:.1f} s could be read"


@contextmanager
def open_media(source: Path | BinaryIO, name: str) -> Iterator[Media]:
    """Open a file, to be read once.

    Args:
        source: A path, or a seekable binary file.
        name: The file's name in error messages.

    Raises:
        UserError: It is not audio, or its format needs PyAV, which is not installed. Reading its blocks raises it, too.
    """
    if isinstance(source, Path) and not _is_text(str(source.resolve())):
        with source.open("rb") as opened, open_media(opened, name) as media:  # libsndfile and PyAV refuse the name
            yield media
        return
    try:
        file = soundfile.SoundFile(source if isinstance(source, Path) else _Unnamed(source))
    except (soundfile.SoundFileError, OSError) as error:
        reason = str(getattr(error, "error_string", None) or error).rstrip(".")
        with _open_with_ffmpeg(source, name, reason) as media:
            yield media
        return
    with file:
        _check_header(name, file.samplerate, file.channels)
        promised = max(file.frames, _frames_in_header(source, file)) / file.samplerate
        yield Media(file.samplerate, _read(file, name), promised)


def _is_text(name: str) -> bool:
    """Return whether a file's name is text: on Linux it may be any bytes."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


class _Unnamed:
    """A binary file without the attribute `name`, from which soundfile would guess the format."""

    def __init__(self, file: BinaryIO):
        self.read, self.tell, self._seek = file.read, file.tell, file.seek
        self.readinto = file.readinto  # type: ignore[attr-defined]

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move, but not to before the file's start, where damaged headers point: libsndfile sees where it is."""
        with suppress(ValueError, OSError):
            self._seek(offset, whence)
        return self.tell()


def _check_header(name: str, rate: int, channels: int) -> None:
    if rate not in RATES:
        raise UserError(f"{name}: a sampling rate of {rate} Hz is not supported")
    if not 1 <= channels <= MAX_CHANNELS:
        raise UserError(f"{name}: {channels} channels are not supported")


def _read(file: soundfile.SoundFile, name: str) -> Iterator[np.ndarray]:
    """Read to the end of the data, not to the end that the header states. Damaged frames end it."""
    shape = max(1, BLOCK // file.channels), file.channels
    try:
        while len(block := file.read(out=np.empty(shape, np.float32))):  # `out`: as much as there is
            yield _checked(block, name)
    except soundfile.SoundFileError as error:
        if file.tell() == 0:
            raise UserError(f"{name}: cannot be read as audio ({error})") from None


def _frames_in_header(source: Path | BinaryIO, file: soundfile.SoundFile) -> int:
    """Return the sample frames that a WAV header states, 0 if unknown. libsndfile says only what the file holds."""
    if file.format not in ("WAV", "WAVEX"):
        return 0
    if isinstance(source, Path):
        with source.open("rb") as opened:
            head = opened.read(4096)
    else:
        place = source.tell()
        source.seek(0)
        head = source.read(4096)
        source.seek(place)
    at = head.find(b"data")
    frame = {"PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}.get(file.subtype, 0)
    if at < 0 or len(head) < at + 8 or not frame:
        return 0
    (size,) = struct.unpack_from("<I", head, at + 4)
    return 0 if size >= UNKNOWN_SIZE else size // (frame * file.channels)


def _checked(block: np.ndarray, name: str) -> np.ndarray:
    if not np.isfinite(block).all():
        raise UserError(f"{name}: holds samples that are not numbers (NaN or infinite)")
    return block


@contextmanager
def _open_with_ffmpeg(source: Path | BinaryIO, name: str, reason: str) -> Iterator[Media]:
    try:
        av = require("av", "media")
    except MissingDependency as error:
        raise UserError(f"{name}: cannot be read as audio ({reason}); for more formats: {error}") from None
    if not isinstance(source, Path):
        source.seek(0)
    try:
        container = av.open(
            str(source.resolve()) if isinstance(source, Path) else source,
            "r",
            options={"format_whitelist": CONTAINERS, "protocol_whitelist": "file"},
        )
    except (av.error.FFmpegError, OSError, ValueError):
        raise UserError(f"{name}: cannot be read as audio ({reason})") from None
    with container:
        if not container.streams.audio:
            raise UserError(f"{name}: cannot be read as audio (it has no audio stream)")
        stream = container.streams.audio[0]
        if stream.codec_context is None:
            raise UserError(f"{name}: cannot be read as audio (FFmpeg has no decoder for its codec)")
        _check_header(name, stream.rate or 0, stream.channels or 0)
        promised = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
        yield Media(stream.rate, _decode(av, container, stream, name), promised)


def _decode(av: Any, container: Any, stream: Any, name: str) -> Iterator[np.ndarray]:
    """Decode a stream packet by packet. Damaged packets are left out, and a break ends it."""
    to_float = av.AudioResampler(format="flt")  # interleaved: with a plane for each of 8 channels, PyAV crashes
    decoded = False
    for packet in _packets(av, container, stream):
        frames: list[Any] = []
        with suppress(av.error.FFmpegError):  # counted as missing audio at the end
            frames = packet.decode()
        for frame in frames:
            if frame.sample_rate != stream.rate:
                raise UserError(f"{name}: changes its sampling rate, which is not supported")
            try:
                parts = to_float.resample(frame)
            except ValueError:
                raise UserError(f"{name}: changes its channels or sample format, which is not supported") from None
            for part in parts:
                decoded = True
                yield _checked(part.to_ndarray().reshape(part.samples, -1), name)
    if not decoded:
        raise UserError(f"{name}: holds no audio")


def _packets(av: Any, container: Any, stream: Any) -> Iterator[Any]:
    """Yield packets to the end of the file, or to where it cannot be read on."""
    while True:
        try:
            yield from container.demux(stream)
        except IndexError:
            continue  # a packet of a stream that begins later, which PyAV does not know
        except av.error.FFmpegError:
            pass
        return
