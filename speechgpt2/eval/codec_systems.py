"""The codecs that are evaluated, behind one interface: name, bit rate, delay, and reconstruction of a waveform.

Codec2 (700C at 700 bit/s, 1300 at 1,300 bit/s) runs through the `c2enc` and `c2dec` programs of the Debian package
`codec2`; it is a telephone-band (8 kHz) parametric codec, the open one at these rates that needs no weights.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import soxr
import torch
from numpy.typing import NDArray

from speechgpt2.errors import UserError
from speechgpt2.types import FRAME_RATE, SAMPLE_RATE

CODEC2_RATE = 8_000
CODEC2_MODES = {"700C": 700, "1300": 1300}  # mode: bit/s
CODEC2_DELAY = {"700C": 720, "1300": 480}  # mode: samples at 24 kHz (30 and 20 ms), where STOI on speech peaks


class Reconstruction(NamedTuple):
    """A waveform through a codec: `pcm [N]` at 24 kHz, and the codes `[T, K]` if the codec has codebooks."""

    pcm: NDArray[np.float32]
    codes: NDArray[np.int64] | None


class CodecSystem(Protocol):
    """A codec under test. `delay` is the number of samples (24 kHz) by which its output trails its input."""

    name: str
    bitrate: int
    delay: int

    def reconstruct(self, pcm: NDArray[np.float32]) -> Reconstruction:
        """Encode and decode `pcm [N]` at 24 kHz."""
        ...


class OwnCodec:
    """The project's codec (a `speechgpt2.Codec`) as a system."""

    def __init__(self, name: str, codec: Any) -> None:
        self.name, self.codec, self.device = name, codec, codec.device
        self.delay = int(getattr(codec.config, "delay", 0))
        self.bitrate = 0  # known after the first reconstruction

    @torch.inference_mode()
    def reconstruct(self, pcm: NDArray[np.float32]) -> Reconstruction:
        """Encode and decode `pcm` [N]."""
        # Silence after the clip, so that the delayed output holds all of the clip.
        padded = np.pad(pcm, (0, self.delay + SAMPLE_RATE // 10)).astype(np.float32)
        codes = self.codec.encode(torch.from_numpy(padded)[None].to(self.device))
        wave = self.codec.decode(codes)[0].float().cpu().numpy()
        self.bitrate = FRAME_RATE * codes.shape[-1] * 10
        return Reconstruction(wave, codes[0].cpu().numpy())


class Codec2:
    """One mode of Codec2. Errors: `UserError` where the programs are not installed."""

    def __init__(self, mode: str) -> None:
        if not has_codec2():
            raise UserError("c2enc and c2dec were not found; install Codec2 (Debian: apt install codec2)")
        self.mode, self.name, self.bitrate = mode, f"Codec2 {mode}", CODEC2_MODES[mode]
        self.delay = CODEC2_DELAY[mode]

    def reconstruct(self, pcm: NDArray[np.float32]) -> Reconstruction:
        """Encode and decode `pcm` [N]."""
        padded = np.pad(np.asarray(pcm, dtype=np.float32), (0, self.delay + SAMPLE_RATE // 10))
        narrow = soxr.resample(padded, SAMPLE_RATE, CODEC2_RATE)
        words = np.round(np.clip(narrow, -1, 1) * 32767).astype("<i2")
        with tempfile.TemporaryDirectory() as folder:
            speech, bits, copy = (Path(folder) / name for name in ("in.raw", "bits.c2", "out.raw"))
            speech.write_bytes(words.tobytes())
            for program, source, target in (("c2enc", speech, bits), ("c2dec", bits, copy)):
                subprocess.run([program, self.mode, source, target], check=True, capture_output=True)
            narrow = np.frombuffer(copy.read_bytes(), dtype="<i2").astype(np.float32) / 32768
        return Reconstruction(soxr.resample(narrow, CODEC2_RATE, SAMPLE_RATE), None)


def has_codec2() -> bool:
    """Whether Codec2's programs can be run."""
    return shutil.which("c2enc") is not None and shutil.which("c2dec") is not None
