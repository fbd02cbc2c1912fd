"""Load a codec and a language model that belong together, if they fit into memory.

    sources = Sources("fnlp/SpeechGPT-2.0-preview-7B", codec="fnlp/SpeechGPT-2.0-preview-Codec")
    plan(sources, torch.device("cuda")).sessions(context=1024)     # how many fit
    codec, lm = load(sources, torch.device("cuda"))

Names are those of built-in models, folders, or Hugging Face ids.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from speechgpt2.codec.model import Codec
from speechgpt2.errors import UserError
from speechgpt2.lm.checkpoint import Checkpoint, open_checkpoint
from speechgpt2.lm.model import SpeechLM
from speechgpt2.lm.model import load as load_lm
from speechgpt2.nn.quantized import KINDS, Quantization
from speechgpt2.streaming import tree_map

RUNTIME = 600_000_000  # bytes for PyTorch and for the tensors of a step
SMALL = 1_000_000_000  # bytes; a smaller model is loaded without a check of the memory
CONTEXT = 1024  # patches that one session remembers by default
GB = 1e9


@dataclass(frozen=True)
class MemoryPlan:
    """The memory of a model on a device, in bytes.

    Attributes:
        device: The device's name.
        free: Memory that can be used, None if the system does not say.
        lm: Weights of the language model.
        codec: Weights of the codec.
        patch: Keys and values of one patch of context.
        session: State of the codec for one session.
    """

    device: str
    free: int | None
    lm: int
    codec: int
    patch: int
    session: int

    def total(self, slots: int, context: int) -> int:
        """Return the bytes for `slots` sessions that remember `context` patches each."""
        return self.lm + self.codec + RUNTIME + slots * (self.session + context * self.patch)

    def fits(self, slots: int, context: int) -> bool:
        """Return whether `slots` sessions of `context` patches fit; True if the free memory is unknown."""
        return self.free is None or self.total(slots, context) <= self.free

    def sessions(self, context: int) -> int:
        """Return how many sessions of `context` patches fit."""
        return self._free_bytes(0) // (self.session + context * self.patch)

    def context(self, slots: int) -> int:
        """Return the longest context of `slots` sessions that fits, in patches."""
        return self._free_bytes(slots) // (slots * self.patch)

    def _free_bytes(self, slots: int) -> int:
        return max(0, (self.free or 0) - self.total(slots, 0))


@dataclass(frozen=True)
class Sources:
    """What to load, and how.

    Attributes:
        model: The language model.
        codec: The codec, if it is not in the model's folder.
        codec_config: The YAML file of a released codec.
        dtype: Precision of the language model; None: see `SpeechLM.from_pretrained`.
        quantization: Quantization of the language model's matrices.
        patch_heads: See `SpeechLM.from_pretrained`.
        greetings: A file of greetings, in place of that in the model's folder.
        greeting_index: Which greeting opens a conversation, counted from 0, in place of the default.
        voice: The same by name.
        codec_dtype: Precision of the codec's decoder; None: as stored, float32 for the released codec.
    """

    model: str | Path
    codec: str | Path | None = None
    codec_config: str | Path | None = None
    dtype: torch.dtype | None = None
    quantization: Quantization | None = None
    patch_heads: int | None = None
    greetings: str | Path | None = None
    greeting_index: int | None = None
    voice: str | None = None
    codec_dtype: torch.dtype | None = None

    def load_codec(self, device: torch.device) -> Codec:
        """Load the codec. Raises `UserError` if it cannot be found or loaded."""
        name = self.codec or self.model
        return Codec.from_pretrained(name, config=self.codec_config, device=device, dtype=self.codec_dtype)

    def load_lm(self, checkpoint: Checkpoint, device: torch.device) -> SpeechLM:
        """Load the language model from its opened checkpoint.

        Raises:
            UserError: If it cannot be loaded, or has no such greeting.
        """
        file = None if self.greetings is None else Path(self.greetings)
        lm = load_lm(checkpoint, self.dtype, device, self.quantization, greetings=file)
        lm.prompt.greetings = lm.prompt.greetings.with_default(self.voice, self.greeting_index)
        return lm


def load(sources: Sources, device: torch.device, slots: int = 1, context: int = CONTEXT) -> tuple[Codec, SpeechLM]:
    """Load both models on `device`.

    Args:
        sources: What to load.
        device: Device of the models.
        slots: Number of sessions that must fit.
        context: Patches that each of them remembers.

    Raises:
        UserError: If a model cannot be found or loaded, or does not fit. The message says what would fit.
    """
    with memory_errors(device):
        codec = sources.load_codec(device)
        checkpoint = open_checkpoint(sources.model, sources.patch_heads)
        check_fits(sources, checkpoint, codec, device, slots, context)
        return codec, sources.load_lm(checkpoint, device)


def plan(sources: Sources, device: torch.device) -> MemoryPlan:
    """Return the memory of the models on `device`. Only the codec is loaded.

    Raises:
        UserError: If a model cannot be found or opened.
    """
    codec = sources.load_codec(torch.device("cpu"))
    return plan_checkpoint(
        sources, open_checkpoint(sources.model, sources.patch_heads), codec, device, free_memory(device)
    )


def check_fits(
    sources: Sources, checkpoint: Checkpoint, codec: Codec, device: torch.device, slots: int, context: int
) -> None:
    """Check that a model fits beside its codec, which is loaded.

    Raises:
        UserError: If it does not fit. The message says what would.
    """
    free = free_memory(device)
    wanted = plan_checkpoint(sources, checkpoint, codec, device, None if free is None else free + _bytes(codec))
    if wanted.lm > SMALL and not wanted.fits(slots, context):
        raise UserError(_does_not_fit(sources, checkpoint, codec, wanted, slots, context))


def _does_not_fit(
    sources: Sources, checkpoint: Checkpoint, codec: Codec, wanted: MemoryPlan, slots: int, context: int
) -> str:
    assert wanted.free is not None
    remedies = []
    if 1 <= (sessions := wanted.sessions(context)) < slots:
        remedies.append(f"--slots {sessions}")
    if 256 <= (patches := wanted.context(slots)) < context:
        remedies.append(f"a context of {patches} patches")
    for kind in KINDS if sources.quantization is None and checkpoint.quantization is None else ():
        smaller = replace(sources, quantization=Quantization(kind))
        needed = replace(wanted, lm=plan_checkpoint(smaller, checkpoint, codec, torch.device(wanted.device), None).lm)
        if needed.fits(slots, context):
            remedies.append(f"--quantize {kind} ({needed.total(slots, context) / GB:.1f} GB)")
    need, free = wanted.total(slots, context) / GB, wanted.free / GB
    return (
        f"{sources.model}: needs {need:.1f} GB on {wanted.device}, where {free:.1f} GB are free; "
        f"what fits: {', '.join(remedies) or 'nothing here; use a larger device'}"
    )


def plan_checkpoint(
    sources: Sources, checkpoint: Checkpoint, codec: Codec, device: torch.device, free: int | None
) -> MemoryPlan:
    """Return the memory of an opened checkpoint and its codec on `device`, of which `free` bytes can be used."""
    dtype, b = checkpoint.dtype(sources.dtype, device), checkpoint.config.backbone
    if sources.quantization is not None:
        dtype = torch.bfloat16
    # On a CPU a packed model keeps keys and values in float32 if its kernels read that (`SpeechLM.pack`).
    cell = 4 if device.type == "cpu" else dtype.itemsize
    states: list[int] = []
    codec_states = codec.init_encoder_state(1, in_place=True), codec.init_decoder_state(1, in_place=True)
    tree_map(lambda leaf: states.append(leaf.nbytes), codec_states)
    return MemoryPlan(
        device=str(device),
        free=free,
        lm=checkpoint.bytes_in(dtype, sources.quantization),
        codec=_bytes(codec),
        patch=b.layers * b.kv_heads * b.head_dim * 2 * cell,
        session=sum(states),
    )


def _bytes(module: torch.nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that can be used on a device, None if the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    if device.type == "cpu" and (meminfo := Path("/proc/meminfo")).is_file():
        lines = (line.split() for line in meminfo.read_text().splitlines())
        return next((int(line[1]) * 1024 for line in lines if line[0] == "MemAvailable:"), None)
    return None


@contextmanager
def memory_errors(device: torch.device) -> Iterator[None]:
    """Raise `UserError` instead of PyTorch's errors about missing memory and missing kernels."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        line = explain(error, str(device))
        if line is None:
            raise
        raise UserError(line) from None


def explain(error: BaseException, device: str) -> str | None:
    """Return one line for an error of PyTorch that the user can correct, None for any other."""
    text = str(error)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in text:
        return f"out of memory on {device}; use --quantize int8 or int4, fewer slots, or a shorter context"
    if "no kernel image" in text:
        return f"this build of PyTorch has no kernels for {device}; install the one for its GPU (pytorch.org)"
    if "driver" in text and "CUDA" in text:
        return f"the CUDA driver does not fit this build of PyTorch: {text.splitlines()[0]}"
    if isinstance(error, NotImplementedError) and "MPS" in text:
        return f"an operation is missing on {device}: set PYTORCH_ENABLE_MPS_FALLBACK=1, or use --device cpu"
    return None
