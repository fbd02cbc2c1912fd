"""`sg2 encode` and `sg2 decode`: audio to codes in a .npy file, and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from speechgpt2.cli.common import Device, ModelName, check_suffix, load_codec, with_progress
from speechgpt2.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import torch

STEP_FRAMES = 250  # 10 s, one step of the progress bar

AudioFile = Annotated[Path, typer.Argument(help="An audio file: WAV, FLAC, OGG, MP3, …", metavar="AUDIO")]
CodesFile = Annotated[Path, typer.Argument(help="A file written by `sg2 encode`.", metavar="CODES.npy")]
CodesOut = Annotated[
    Path, typer.Option("--out", "-o", help="A .npy file: int16 [frames, codebooks].", metavar="CODES.npy")
]
AudioOut = Annotated[Path, typer.Option("--out", "-o", help="A .wav or .flac file.", metavar="FILE")]


def encode(audio_file: AudioFile, out: CodesOut, codec: ModelName = "mini", device: Device = "auto") -> None:
    """Encode an audio file into codec frames: 25 frames per second, 3 codes per frame."""
    import numpy as np
    import torch

    from speechgpt2 import audio, hub
    from speechgpt2.types import FRAME_SIZE

    check_suffix(out, ".npy")
    hub.check_writable(out)
    pcm = torch.from_numpy(audio.load(audio_file))[None]
    model = load_codec(codec, device)
    if not model.frames(pcm.shape[1]):
        raise UserError(f"{audio_file}: too short to encode ({pcm.shape[1]} samples)")
    state, frames, chunks = model.init_encoder_state(1), [], pcm.split(STEP_FRAMES * FRAME_SIZE, dim=1)
    for i, chunk in enumerate(with_progress(list(chunks), "encoding")):
        codes, state = model.encode(chunk.to(device_of(model)), state, final=i == len(chunks) - 1)
        frames.append(codes[0].cpu())
    values = torch.cat(frames).numpy().astype(np.int16)
    hub.save_array(out, values)
    print(f"{out}: {len(values)} frames of {values.shape[1]} codes, {len(values) / 25:.2f} s")


def decode(codes: CodesFile, out: AudioOut, codec: ModelName = "mini", device: Device = "auto") -> None:
    """Decode a file of codec frames into audio."""
    import numpy as np
    import torch

    from speechgpt2 import audio, hub
    from speechgpt2.codec.model import check_codes
    from speechgpt2.types import FRAME_SIZE, SAMPLE_RATE

    audio.check_format(out)
    hub.check_writable(out)
    values = torch.from_numpy(read_codes(codes).astype(np.int64))
    model = load_codec(codec, device)
    check_codes(values, model.config)
    delay, length = model.config.delay, len(values) * FRAME_SIZE
    # The decoder's output trails its input by `delay` samples: repeated frames push the end out.
    values = torch.cat([values, values[-1:].expand(-(-delay // FRAME_SIZE), -1)])
    state, chunks = model.init_decoder_state(1), []
    for chunk in with_progress(list(values[None].split(STEP_FRAMES, dim=1)), "decoding"):
        pcm, state = model.decode(chunk.to(device_of(model)), state)
        chunks.append(pcm[0].cpu().numpy())
    samples = np.concatenate(chunks)[delay : delay + length]
    audio.save(out, samples)
    print(f"{out}: {len(samples) / SAMPLE_RATE:.2f} s")


def read_codes(path: Path) -> np.ndarray:
    """Read codes from a .npy file.

    Returns:
        Integers `[T, K]` with T > 0.

    Raises:
        UserError: the file holds anything else.
    """
    import numpy as np

    if not path.is_file():
        raise UserError(f"{path}: {'a folder, not a file' if path.is_dir() else 'no such file'}")
    try:
        values = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError):
        raise UserError(f"{path}: not a .npy file of numbers, as `sg2 encode` writes") from None
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind not in "iu" or not len(values):
        raise UserError(f"{path}: expected integers [frames, codebooks], as `sg2 encode` writes")
    return values


def device_of(model: torch.nn.Module) -> torch.device:
    """Return the device of a module's weights."""
    return next(model.parameters()).device
