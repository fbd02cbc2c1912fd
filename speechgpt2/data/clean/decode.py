"""Any file -> a standard recording: 24 kHz, mono, 16 bit, decoded block by block in bounded memory.

What libsndfile cannot read goes through ffmpeg where that is installed. Neither a name nor a header is believed.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile

from speechgpt2.audio import Resampler
from speechgpt2.data.pipeline.sound import Sound
from speechgpt2.data.pipeline.stage import Rejected, Stage
from speechgpt2.data.record import AudioInfo, Clip
from speechgpt2.types import SAMPLE_RATE

BLOCK = 1 << 16  # sample frames decoded at a time
RATES = range(4_000, 384_001)  # Hz; anything else is a damaged header
MAX_CHANNELS = 16
WHOLE = 0.98  # of the samples that the header promises; formats without a table of contents estimate
QUIETEST = 4 / 32768  # a file that never exceeds it holds no sound
FFMPEG_RATE = 48_000  # what ffmpeg is asked for: the highest rate of the formats that need it


@dataclass(frozen=True)
class DecodeConfig:
    """max_hours   of one file
    channels    "mix" them, or "split": a clip for each, such as the two sides of a call
    """

    kind: Literal["decode"] = "decode"
    max_hours: float = 12.0
    channels: Literal["mix", "split"] = "mix"


class Decode(Stage[DecodeConfig]):
    """The file of a clip becomes a standard recording, or one for each channel."""

    version = 1

    def __call__(self, clip: Clip, sound: Sound) -> Clip | list[Clip]:
        path = sound.workspace.source(clip.audio.path)
        if path is None or not path.is_file():
            raise Rejected("unreadable", f"no file {clip.audio.path!r} below the sources")
        with _opened(path) as source:
            count = source.channels if self.config.channels == "split" else 0
        if count < 2:
            return self._decoded(clip, sound, path, None)
        parts = [self._decoded(clip, sound, path, channel) for channel in range(count)]
        return [replace(part, id=f"{clip.id}-c{n}", parent_id=clip.id) for n, part in enumerate(parts)]

    def _decoded(self, clip: Clip, sound: Sound, path: Path, channel: int | None) -> Clip:
        with _opened(path) as source:
            pcm_hash, samples = sound.workspace.add(self._blocks(source, channel))
        info = AudioInfo(
            clip.audio.path, source.rate, source.channels, 0.0, samples / SAMPLE_RATE, source.format, pcm_hash
        )
        return replace(clip, audio=info)

    def _blocks(self, source: _Source, channel: int | None) -> Iterator[np.ndarray]:
        """float32 [N] at 24 kHz. Errors: `Rejected` for what cannot be one recording of speech."""
        resampler, samples, peak = Resampler(source.rate), 0, 0.0
        for block in source.blocks():
            if not np.isfinite(block).all():
                raise Rejected("corrupt", "holds samples that are no numbers")
            samples += len(block)
            if samples > self.config.max_hours * 3600 * source.rate:
                raise Rejected("endless", f"decodes to more than {self.config.max_hours:g} hours")
            mono = block.mean(axis=1) if channel is None else block[:, channel]
            peak = max(peak, float(np.abs(mono).max()))
            yield resampler.push(mono)
        if samples < WHOLE * source.promised:
            raise Rejected("corrupt", f"its header promises {source.promised} samples, it holds {samples}")
        if peak <= QUIETEST:
            raise Rejected("silent", f"holds {samples / source.rate:.1f} s of nothing")
        yield resampler.push(np.zeros(0, np.float32), final=True)


@dataclass
class _Source:
    """An open file or a pipe: `blocks` gives float32 [N, channels] until it ends."""

    rate: int
    channels: int
    format: str
    promised: int  # sample frames by the header
    file: soundfile.SoundFile | None = None
    process: subprocess.Popen[bytes] | None = None

    def blocks(self) -> Iterator[np.ndarray]:
        return self._from_file(self.file) if self.file is not None else self._from_pipe()

    def _from_file(self, file: soundfile.SoundFile) -> Iterator[np.ndarray]:
        try:
            while len(block := file.read(BLOCK, dtype="float32", always_2d=True)):
                yield block
        except soundfile.SoundFileError as error:
            raise Rejected("corrupt", f"decoding broke off ({error})") from None

    def _from_pipe(self) -> Iterator[np.ndarray]:
        assert self.process is not None and self.process.stdout is not None
        width = 2 * self.channels
        while data := self.process.stdout.read(width * BLOCK):
            whole = len(data) // width * width
            yield np.frombuffer(data[:whole], "<i2").astype(np.float32).reshape(-1, self.channels) / 32768


@contextmanager
def _opened(path: Path) -> Iterator[_Source]:
    try:
        file = soundfile.SoundFile(path)
    except (soundfile.SoundFileError, OSError):
        with _through_ffmpeg(path) as source:
            yield source
        return
    with file:
        if file.samplerate not in RATES or not 1 <= file.channels <= MAX_CHANNELS:
            raise Rejected("corrupt", f"{file.samplerate} Hz and {file.channels} channels are not believable")
        yield _Source(file.samplerate, file.channels, file.format, file.frames, file=file)


@contextmanager
def _through_ffmpeg(path: Path) -> Iterator[_Source]:
    """ffmpeg is told the container: left to guess, it would follow the paths and URLs in a playlist."""
    demuxer = _demuxer_of(path)
    if demuxer is None or shutil.which("ffmpeg") is None:
        raise Rejected("not-audio", "is in no format that can be decoded")
    command = [
        "ffmpeg", "-v", "error", "-nostdin", "-xerror", "-f", demuxer, "-i", str(path), "-map", "0:a:0", "-vn",
        "-ac", "1", "-ar", str(FFMPEG_RATE), "-f", "s16le", "pipe:1",
    ]  # fmt: skip
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints)
        try:
            yield _Source(FFMPEG_RATE, 1, demuxer.upper(), 0, process=process)
            _check(process, complaints)
        except Rejected as refusal:
            if refusal.reason == "silent":  # perhaps because nothing could be decoded
                _check(process, complaints)
            raise
        finally:
            process.kill()
            assert process.stdout is not None
            process.stdout.close()
            process.wait()


def _check(process: subprocess.Popen[bytes], complaints: tempfile._TemporaryFileWrapper | object) -> None:
    complaints.seek(0)  # type: ignore[union-attr]
    said = complaints.read(300).decode("utf-8", "replace").strip().splitlines()  # type: ignore[union-attr]
    if said:
        raise Rejected("corrupt", f"ffmpeg says: {said[0]}")


def _demuxer_of(path: Path) -> str | None:
    """ffmpeg's demuxer by the first bytes; None for what is no container of sound."""
    with path.open("rb") as file:
        head = file.read(16)
    if head[4:8] == b"ftyp":
        return "mov"
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    if head[:4] == b"OggS":
        return "ogg"
    return "aac" if len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0 else None
