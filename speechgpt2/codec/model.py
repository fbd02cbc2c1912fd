"""The codec: 24 kHz speech to 3 × 1,024 codes at 25 Hz and back, streaming or at once.

codec = Codec.from_pretrained("mini")
codes = codec.encode(pcm)                             # [B, N] -> [B, T, K]
pcm = codec.decode(codes)                             # [B, T, K] -> [B, 960·T]

state = codec.init_encoder_state(1)
codes, state = codec.encode(chunk, state)             # streaming: whole frames in, as many code frames out
codes, state = codec.encode(rest, state, final=True)  # the last chunk may have any length
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor, nn

from speechgpt2 import config as configs
from speechgpt2 import hub
from speechgpt2.codec import released
from speechgpt2.codec.config import CodecConfig
from speechgpt2.codec.decoder import Decoder, DecoderState
from speechgpt2.codec.encoder import Encoder, EncoderState
from speechgpt2.codec.quantizer import ResidualQuantizer
from speechgpt2.errors import UserError
from speechgpt2.nn.linear import pack
from speechgpt2.nn.uninitialized import uninitialized
from speechgpt2.types import FRAME_SIZE, PATCH_FRAMES

CONFIG_FILE, WEIGHTS_FILE = "codec.json", "codec.safetensors"
OFFLINE_CHUNK = 250  # frames (10 s) that a long recording is cut into, to bound memory


class Codec(nn.Module):
    """Encoder, residual quantizer and decoder."""

    def __init__(self, config: CodecConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quantizer = ResidualQuantizer(config.quantizer, config.latent)
        self.decoder = Decoder(config)

    @property
    def device(self) -> torch.device:
        """Where the codec computes."""
        return next(self.buffers()).device

    def optimize_for_inference(self, batch: int = 1) -> None:
        """Pack the weights (`nn.linear.pack`) for streaming `batch` rows, one patch at a time; process one of silence.

        The first product of a size prepares what later ones use, which would delay a stream's first patch. A small
        encoder keeps its matrices, so that a recording has the same codes with and without packing.
        """
        frames = PATCH_FRAMES * batch
        pack(self.encoder, 4 * frames, half=False)
        pack(self.quantizer, frames)  # float64 chooses among its nearest entries
        pack(self.decoder.vq_transformer, frames)  # the only part of the decoder at the frame rate
        pack(self.decoder, 4 * frames)
        silence = torch.zeros(1, PATCH_FRAMES * FRAME_SIZE, device=self.device)
        codes, _ = self.encode(silence, self.init_encoder_state(1, in_place=True))
        self.decode(codes, self.init_decoder_state(1, in_place=True))

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        config: str | Path | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
    ) -> Codec:
        """Load a built-in model, a folder that `save_pretrained` wrote, or the released file.

        Args:
            name: What to load. The released file may be given by itself, by its folder or by its Hugging Face id.
            config: The YAML file of a released checkpoint. By default it is looked for beside the checkpoint; without
                one the sizes are the published ones.
            device: Where the weights go.
            dtype: Precision of the decoder. The encoder stays in float32, because rounding it changes codes.

        Raises:
            UserError: If it is absent, damaged or does not fit its configuration.
        """
        path = released.find(name, CONFIG_FILE)
        if path.name == CONFIG_FILE:
            with uninitialized():
                codec = cls(configs.load(CodecConfig, path))
            hub.load_into(codec, hub.open_tensors(path.with_name(WEIGHTS_FILE)), str(path.parent))
        else:
            with uninitialized():
                codec = cls(released.read_config(path, config))
            state = released.read_state_dict(path)
            hub.load_into(codec, released.rename(state, codec.state_dict()), str(path), adopt=True)
        codec.quantizer.restart_averages()
        codec.decoder.to(dtype)
        return codec.to(device).eval()

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write `codec.json` and `codec.safetensors`, floating-point tensors in `dtype` if given."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        configs.dump(self.config, folder / CONFIG_FILE)
        tensors = {
            name: (t.to(dtype) if dtype and t.is_floating_point() else t) for name, t in self.state_dict().items()
        }
        hub.save_tensors(folder / WEIGHTS_FILE, tensors)

    def init_encoder_state(self, batch: int, in_place: bool = False) -> EncoderState:
        """Return the encoder's state before any audio.

        Args:
            batch: Rows.
            in_place: Whether keys and values are written in place (nn/ring.py), for streams in chunks of up to a patch.
                That is faster, but of such a state only the newest and the one before may be used.
        """
        return self.encoder.init_state(batch, in_place)

    def init_decoder_state(self, batch: int, in_place: bool = False) -> DecoderState:
        """Return the decoder's state before any codes; for the arguments see `init_encoder_state`."""
        return self.decoder.init_state(batch, in_place)

    @overload
    def encode(self, pcm: Tensor, *, lengths: Tensor | None = None) -> Tensor: ...
    @overload
    def encode(
        self, pcm: Tensor, state: EncoderState, *, lengths: Tensor | None = None, final: bool = False
    ) -> tuple[Tensor, EncoderState]: ...

    @torch.inference_mode()
    def encode(self, pcm: Tensor, state: Any = None, *, lengths: Tensor | None = None, final: bool = False) -> Any:
        """Encode speech.

        Args:
            pcm: Samples `[B, N]`, float at 24 kHz. In a stream a chunk is a multiple of 960 samples unless it is final.
            state: The state before the chunk, for streaming.
            lengths: Valid samples of each row of a padded final batch, `[B]`. Row b then has `frames(lengths[b])` code
                frames; those after them are undefined.
            final: Whether this is the last chunk. At least 240 left-over samples complete one more frame.

        Returns:
            Codes `[B, T, K]` (int64), and with a `state` also the next state.

        Raises:
            ValueError: If a shape or a chunk's length does not fit.
        """
        if pcm.dim() != 2:
            raise ValueError(f"pcm must be [batch, samples], got {list(pcm.shape)}")
        if state is not None and not final and pcm.shape[1] % FRAME_SIZE:
            raise ValueError(
                f"a chunk holds whole frames ({FRAME_SIZE} samples) unless it is final, got {pcm.shape[1]}"
            )
        running, codes = state, []
        for chunk, chunk_lengths in _chunks(pcm, lengths, OFFLINE_CHUNK * FRAME_SIZE):
            if chunk.shape[1] < self.config.mel.hop:
                continue
            latent, running = self.encoder(chunk.float(), running, chunk_lengths)
            codes.append(self.quantizer.encode(latent))
        k = self.config.quantizer.codebooks
        result = torch.cat(codes, 1) if codes else torch.zeros(len(pcm), 0, k, dtype=torch.int64, device=pcm.device)
        return result if state is None else (result, running)

    @overload
    def decode(self, codes: Tensor) -> Tensor: ...
    @overload
    def decode(self, codes: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]: ...

    @torch.inference_mode()
    def decode(self, codes: Tensor, state: Any = None) -> Any:
        """Decode codes `[B, T, K]` to samples `[B, 960·T]` (float32); with a `state` also return the next state.

        Raises:
            ValueError: If the codes have another shape.
        """
        if codes.dim() != 3 or codes.shape[-1] != self.config.quantizer.codebooks:
            raise ValueError(
                f"codes must be [batch, frames, {self.config.quantizer.codebooks}], got {list(codes.shape)}"
            )
        dtype = self.decoder.widen.weight.dtype
        running, pcm = state, []
        for chunk in codes.split(OFFLINE_CHUNK, dim=1) if codes.shape[1] else ():
            wave, running = self.decoder(self.quantizer.decode(chunk).to(dtype), running)
            pcm.append(wave.float())
        result = torch.cat(pcm, 1) if pcm else torch.zeros(len(codes), 0, device=codes.device)
        return result if state is None else (result, running)

    def frames(self, samples: int) -> int:
        """Return the number of code frames of a recording of `samples` samples."""
        steps = samples // self.config.mel.hop
        return -(-steps // 4)


def _chunks(pcm: Tensor, lengths: Tensor | None, size: int) -> list[tuple[Tensor, Tensor | None]]:
    """Cut `[B, N]` into chunks of `size` samples, each with its part of `lengths`."""
    pieces = pcm.split(size, dim=1)
    if lengths is None:
        return [(piece, None) for piece in pieces]
    return [(p, (lengths - i * size).clamp(0, p.shape[1])) for i, p in enumerate(pieces)]


def check_codes(codes: Tensor, config: CodecConfig) -> None:
    """Raise `UserError` unless `codes [..., K]` are integers within the codebooks."""
    if codes.shape[-1] != config.quantizer.codebooks:
        raise UserError(
            f"codes must have {config.quantizer.codebooks} codebooks on the last axis, got {codes.shape[-1]}"
        )
    if codes.numel() and not (int(codes.min()) >= 0 and int(codes.max()) < config.quantizer.size):
        raise UserError(f"codes must lie in 0…{config.quantizer.size - 1}")
