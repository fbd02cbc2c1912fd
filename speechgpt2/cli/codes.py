"""`sg2 encode` and `sg2 decode`: sound to codes in a .npy file, and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from speechgpt2.cli.common import Device, ModelName, check_ending, load_codec, track
from speechgpt2.errors import UserError

if TYPE_CHECKING:
    import numpy as np

CHUNK_FRAMES = 250  # 10 s: what the progress bar advances by

SoundFile = Annotated[Path, typer.Argument(help="A sound file: WAV, FLAC, OGG, MP3 …", metavar="SOUND")]
CodesFile = Annotated[Path, typer.Argument(help="What `sg2 encode` wrote.", metavar="CODES.npy")]
CodesOut = Annotated[Path, typer.Option("--out", "-o", help="A .npy file: int16 [frames, codebooks].")]
SoundOut = Annotated[Path, typer.Option("--out", "-o", help="A .wav or .flac file.")]


def encode(sound: SoundFile, out: CodesOut, codec: ModelName = "mini", device: Device = "auto") -> None:
    """Encode a sound file: 25 frames of 3 codes a second."""
    import numpy as np
    import torch

    from speechgpt2 import audio, hub
    from speechgpt2.types import FRAME_SIZE

    check_ending(out, ".npy")
    hub.check_writable(out)
    pcm = torch.from_numpy(audio.load(sound))[None]
    model = load_codec(codec, device)
    if not model.frames(pcm.shape[1]):
        raise UserError(f"{sound}: too short to encode ({pcm.shape[1]} samples)")
    state, frames, pieces = model.init_encoder_state(1), [], pcm.split(CHUNK_FRAMES * FRAME_SIZE, dim=1)
    for i, piece in enumerate(track(list(pieces), "encoding")):
        codes, state = model.encode(piece.to(device_of(model)), state, final=i == len(pieces) - 1)
        frames.append(codes[0].cpu())
    values = torch.cat(frames).numpy().astype(np.int16)
    hub.save_array(out, values)
    print(f"{out}: {len(values)} frames of {values.shape[1]} codes, {len(values) / 25:.2f} s")


def decode(codes: CodesFile, out: SoundOut, codec: ModelName = "mini", device: Device = "auto") -> None:
    """Decode a file of codes into sound."""
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
    values = torch.cat([values, values[-1:].expand(-(-delay // FRAME_SIZE), -1)])  # so that the end is heard, too
    state, pieces = model.init_decoder_state(1), []
    for piece in track(list(values[None].split(CHUNK_FRAMES, dim=1)), "decoding"):
        pcm, state = model.decode(piece.to(device_of(model)), state)
        pieces.append(pcm[0].cpu().numpy())
    pcm = np.concatenate(pieces)[delay : delay + length]
    audio.save(out, pcm)
    print(f"{out}: {len(pcm) / SAMPLE_RATE:.2f} s")


def read_codes(path: Path) -> np.ndarray:
    """An integer array `[T, K]`, T > 0, from a .npy file. Errors: `UserError` if it is anything else."""
    import numpy as np

    if not path.is_file():
        raise UserError(f"{path}: {'a folder, not a file' if path.is_dir() else 'no such file'}")
    try:
        values = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError):
        raise UserError(f"{path}: not a .npy file of numbers, as `sg2 encode` writes") from None
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind not in "iu" or not len(values):
        raise UserError(f"{path}: expected whole numbers [frames, codebooks], as `sg2 encode` writes them")
    return values


def device_of(model: Any) -> Any:
    """Where a module's weights are."""
    return next(model.parameters()).device
