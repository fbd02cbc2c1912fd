"""Audio as complete files, for the REST interface."""

from __future__ import annotations

import io
import struct

import numpy as np

from speechgpt2 import audio
from speechgpt2.audio import AudioReader
from speechgpt2.errors import UserError
from speechgpt2.types import SAMPLE_RATE

# name in the API: media type, libsndfile's container and subtype (PCM has neither)
FILE_FORMATS: dict[str, tuple[str, str | None, str | None]] = {
    "wav": ("audio/wav", "WAV", "PCM_16"),
    "flac": ("audio/flac", "FLAC", "PCM_16"),
    "mp3": ("audio/mpeg", "MP3", "MPEG_LAYER_III"),
    "opus": ("audio/ogg", "OGG", "OPUS"),
    "pcm": ("audio/pcm", None, None),
    "pcm16": ("audio/pcm", None, None),
}
STREAMABLE = ("pcm", "pcm16", "wav")


def media_type(format: str) -> str:
    """Return the Content-Type of a format.

    Raises:
        UserError: The format is not supported.
    """
    if format not in FILE_FORMATS:
        raise UserError(f"format '{format}' is not supported; use one of {', '.join(FILE_FORMATS)}")
    return FILE_FORMATS[format][0]


def encode_file(pcm: np.ndarray, format: str) -> bytes:
    """Encode `pcm [N]` at 24 kHz as a file.

    Raises:
        UserError: The format is not supported.
    """
    media_type(format)
    _, container, subtype = FILE_FORMATS[format]
    if container is None:
        return audio.to_pcm16(pcm)
    assert subtype is not None
    return audio.encode(np.clip(pcm, -1, 1), container, subtype)


def wav_header() -> bytes:
    """Return the header of a WAV file of unknown length; PCM16 follows it."""
    rate = struct.pack("<IHHIIHH", 16, 1, 1, SAMPLE_RATE, 2 * SAMPLE_RATE, 2, 16)
    return b"RIFF" + b"\xff\xff\xff\xff" + b"WAVEfmt " + rate + b"data" + b"\xff\xff\xff\xff"


def decode_file(data: bytes, name: str, max_seconds: float) -> np.ndarray:
    """Decode an audio file.

    Args:
        data: The file's content.
        name: The file's name in error messages.
        max_seconds: A longer recording is an error.

    Returns:
        `[N]` float32 at 24 kHz.

    Raises:
        UserError: It is not an audio file, or too long.
    """
    return np.concatenate(list(AudioReader(io.BytesIO(data), name, max_seconds)))
