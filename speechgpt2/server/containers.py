"""Sound as whole files, in requests and answers of the REST interface."""

from __future__ import annotations

import io
import struct
import tempfile
from pathlib import Path

import numpy as np
import soundfile

from speechgpt2 import audio
from speechgpt2.errors import UserError
from speechgpt2.types import SAMPLE_RATE

# name on the wire: media type, libsndfile's container and coding; PCM has neither
CONTAINERS: dict[str, tuple[str, str | None, str | None]] = {
    "wav": ("audio/wav", "WAV", "PCM_16"),
    "flac": ("audio/flac", "FLAC", "PCM_16"),
    "mp3": ("audio/mpeg", "MP3", "MPEG_LAYER_III"),
    "opus": ("audio/ogg", "OGG", "OPUS"),
    "pcm": ("audio/pcm", None, None),
    "pcm16": ("audio/pcm", None, None),
}
STREAMED = ("pcm", "pcm16", "wav")  # what can be sent while it is being made


def media_type(format: str) -> str:
    """For the answer's header. Errors: `UserError` for a format that is not made here."""
    if format not in CONTAINERS:
        raise UserError(f"format '{format}' is not made here; one of {', '.join(CONTAINERS)}")
    return CONTAINERS[format][0]


def encode(pcm: np.ndarray, format: str) -> bytes:
    """`pcm [N]` at 24 kHz as a file. Errors: `UserError` for a format that is not made here."""
    media_type(format)
    _, container, coding = CONTAINERS[format]
    if container is None:
        return audio.to_pcm16(pcm)
    file = io.BytesIO()
    soundfile.write(file, np.clip(pcm, -1, 1), SAMPLE_RATE, format=container, subtype=coding)
    return file.getvalue()


def wav_header() -> bytes:
    """What precedes PCM16 in a WAV file whose length is not known yet."""
    rate = struct.pack("<IHHIIHH", 16, 1, 1, SAMPLE_RATE, 2 * SAMPLE_RATE, 2, 16)
    return b"RIFF" + b"\xff\xff\xff\xff" + b"WAVEfmt " + rate + b"data" + b"\xff\xff\xff\xff"


def decode(data: bytes, name: str) -> np.ndarray:
    """A sound file's content -> `pcm [N]` at 24 kHz. Errors: `UserError` that calls it `name`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sound"
        path.write_bytes(data)
        try:
            return audio.load(path)
        except UserError as error:
            raise UserError(str(error).replace(str(path), name)) from None
