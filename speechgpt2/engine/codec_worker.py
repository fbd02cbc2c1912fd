"""The codec of all slots, audio to codes and codes to audio, in a thread or process of its own.

The codec takes half the time of a speaking step and needs only codes from the language model, so both run at the same
time. A process is better than a thread: two threads of many small operations wait for the interpreter's lock most of
the time. Calls are executed in their order.

    worker = CodecProcess(codec, slots=8, patch_samples=2880)    # or CodecThread(…)
    future = worker.encode({3: AudioChunk(…)})                   # meanwhile the model goes on
    codes = future.result()[3]
"""

from __future__ import annotations

import io
import logging
import multiprocessing
import signal
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from speechgpt2.codec.config import CodecConfig
from speechgpt2.codec.model import Codec
from speechgpt2.engine.batch_rows import BatchRows
from speechgpt2.streaming import tree_map
from speechgpt2.types import FRAME_SIZE

START_TIMEOUT = 120.0  # seconds that the process may take to start
MAX_SILENCE = 10.0  # seconds without an answer after which the process is ended; an answer takes milliseconds
WATCH_INTERVAL = 1.0  # seconds

log = logging.getLogger("sg2.engine")


class AudioChunk(NamedTuple):
    """A piece of the user's audio: `pcm [N]` of at most a patch, whether it is the first or the last of its turn."""

    pcm: np.ndarray
    first: bool
    final: bool


class BatchedCodec:
    """The codec, with a row of encoder and decoder state for every slot.

    Args:
        codec: The codec. It is packed for inference.
        slots: How many slots need a row.
        patch_samples: Samples of a patch.
    """

    def __init__(self, codec: Codec, slots: int, patch_samples: int):
        codec.optimize_for_inference(slots)
        self.codec, self.patch_samples = codec, patch_samples
        self.rows = BatchRows(slots, codec.quantizer.codebooks[0].embed.device)  # type: ignore[arg-type]
        self.encoder_states = codec.init_encoder_state(self.rows.count)
        self.decoder_states = codec.init_decoder_state(self.rows.count)
        all_rows, no_row = torch.arange(self.rows.count), self.rows.mask(())
        pcm, lengths = self.rows.to_device(np.zeros((self.rows.count, patch_samples), np.float32)), no_row.long()
        codes = no_row.long()[:, None, None].expand(-1, patch_samples // FRAME_SIZE, codec.config.quantizer.codebooks)
        self.encode_rows = self.rows.record(self._encode_rows, all_rows, pcm, lengths, no_row)
        self.decode_rows = self.rows.record(self._decode_rows, all_rows, codes, no_row)

    @torch.inference_mode()
    def encode(self, chunks: Mapping[int, AudioChunk]) -> dict[int, np.ndarray]:
        """Encode each slot's chunk. A final chunk does not change the state, because the turn may be reopened.

        Returns:
            The codes of each slot, `[T, K]`.
        """
        pcm, lengths = np.zeros((self.rows.count, self.patch_samples), np.float32), np.zeros(self.rows.count, np.int64)
        for slot, chunk in chunks.items():
            pcm[slot, : len(chunk.pcm)], lengths[slot] = chunk.pcm, len(chunk.pcm)
        first = [slot for slot, chunk in chunks.items() if chunk.first]
        self.rows.reset(self.encoder_states, self.codec.init_encoder_state, first)
        continues = self.rows.mask(slot for slot, chunk in chunks.items() if not chunk.final)
        inputs, result = (self.rows.to_device(pcm), self.rows.to_device(lengths), continues), {}
        for rows in self.rows.batches(chunks):
            codes = self.encode_rows(rows, *self.rows.select(inputs, rows)).cpu().numpy()
            for slot, frames in zip(rows.tolist(), codes, strict=True):
                if slot in chunks:
                    result[slot] = frames[: self.codec.frames(len(chunks[slot].pcm))]
        return result

    @torch.inference_mode()
    def decode(self, slots: Tensor, codes: Tensor, speaking: Tensor, new_replies: Iterable[int]) -> np.ndarray:
        """Decode one patch of some slots.

        Args:
            slots: `[R]`.
            codes: `[R, G, K]`.
            speaking: Which of the slots speak, `[R]` bool. Others keep their state, and their result is undefined.
            new_replies: Slots whose decoder state is reset first.

        Returns:
            Audio `[R, N]` float32 at 24 kHz.
        """
        self.rows.reset(self.decoder_states, self.codec.init_decoder_state, new_replies)
        codes = codes.clamp(max=self.codec.config.quantizer.size - 1)
        inputs = (self.rows.scatter(slots, codes), self.rows.scatter(slots, speaking))
        pcm = torch.zeros(self.rows.count, self.patch_samples, device=self.rows.device)
        busy = range(self.rows.count) if self.rows.static_shapes else slots[speaking].tolist()
        for rows in self.rows.batches(busy):
            self.rows.overwrite(pcm, rows, self.decode_rows(rows, *self.rows.select(inputs, rows)))
        return self.rows.select(pcm, slots).cpu().numpy()

    @torch.inference_mode()
    def wipe(self, slot: int) -> None:
        """Erase the states of a slot."""
        tree_map(lambda leaf: leaf[slot].zero_(), (self.encoder_states, self.decoder_states))

    def _encode_rows(self, rows: Tensor, pcm: Tensor, lengths: Tensor, continues: Tensor) -> Tensor:
        # Every chunk is encoded to its last frame, as if it were final. This does no harm to a chunk that continues: it
        # is a whole patch, so no frame of it is incomplete. Only the state of those chunks is kept.
        before = self.rows.select(self.encoder_states, rows)
        codes, after = self.codec.encode(pcm, before, lengths=lengths, final=True)
        self.rows.update(self.encoder_states, rows, continues, after, before)
        return codes

    def _decode_rows(self, rows: Tensor, codes: Tensor, speaking: Tensor) -> Tensor:
        before = self.rows.select(self.decoder_states, rows)
        pcm, after = self.codec.decode(codes, before)
        self.rows.update(self.decoder_states, rows, speaking, after, before)
        return pcm


class CodecFuture(Protocol):
    """The future result of a call."""

    def done(self) -> bool:
        """Return whether the result is there."""
        ...

    def result(self) -> Any:
        """Wait for the result. Raises what the call raises; if a process made it, RuntimeError."""
        ...


class CodecWorker(ABC):
    """Runs a `BatchedCodec`. Its calls return at once; `BatchedCodec` describes their results."""

    @property
    @abstractmethod
    def alive(self) -> bool:
        """Whether calls can still be executed."""

    def encode(self, chunks: Mapping[int, AudioChunk]) -> CodecFuture:
        """Submit `BatchedCodec.encode`."""
        return self._submit(BatchedCodec.encode, chunks)

    def decode(self, slots: Tensor, codes: Tensor, speaking: Tensor, new_replies: list[int]) -> CodecFuture:
        """Submit `BatchedCodec.decode`."""
        return self._submit(BatchedCodec.decode, slots, codes, speaking, new_replies)

    def wipe(self, slot: int) -> CodecFuture:
        """Submit `BatchedCodec.wipe`."""
        return self._submit(BatchedCodec.wipe, slot)

    @abstractmethod
    def close(self) -> None:
        """Stop."""

    @abstractmethod
    def _submit(self, method: Callable[..., Any], *arguments: Any) -> CodecFuture: ...


class CodecThread(CodecWorker):
    """Runs the codec in a thread of this process: for CUDA, or a single processor."""

    def __init__(self, codec: Codec, slots: int, patch_samples: int):
        self._codec = BatchedCodec(codec, slots, patch_samples)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="codec")

    @property
    def alive(self) -> bool:
        """Always true: the thread lives as long as the process."""
        return True

    def close(self) -> None:
        """Stop the thread."""
        self._thread.shutdown()

    def _submit(self, method: Callable[..., Any], *arguments: Any) -> CodecFuture:
        return self._thread.submit(method, self._codec, *arguments)


class CodecProcess(CodecWorker):
    """Runs the codec on the CPU, in a process of its own with one thread.

    Raises:
        RuntimeError: The process does not start, or has ended.
    """

    def __init__(self, codec: Codec, slots: int, patch_samples: int):
        weights = io.BytesIO()
        torch.save(codec.state_dict(), weights)
        spawn = multiprocessing.get_context("spawn")
        self._pipe, child_pipe = spawn.Pipe()
        dtype = codec.decoder.widen.weight.dtype
        arguments = (child_pipe, codec.config, dtype, weights.getvalue(), slots, patch_samples)
        self.process = spawn.Process(target=_serve, args=arguments, name="codec", daemon=True)
        self.process.start()
        child_pipe.close()
        self._unanswered: deque[_ProcessFuture] = deque()
        self._waiting_since: float | None = None  # when the process began to work on the oldest unanswered call
        if not self._pipe.poll(START_TIMEOUT):
            raise RuntimeError("the codec's process does not start")
        self._receive()
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="codec watchdog", daemon=True).start()

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process.is_alive()

    def _watch(self) -> None:
        """End a process that does not answer. The engine then fails instead of waiting for ever."""
        while not self._closed.wait(WATCH_INTERVAL):
            since = self._waiting_since
            if since is not None and time.monotonic() - since > MAX_SILENCE:
                log.error("the codec's process has not answered for %.0f s and is ended", MAX_SILENCE)
                self.process.kill()
                return

    def close(self) -> None:
        """Close the pipe, which ends the process, and wait for its end."""
        self._closed.set()
        self._pipe.close()
        self.process.join(5.0)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()

    def receive(self, wait: bool) -> bool:
        """Receive the result of the oldest unanswered call. With `wait`, wait for it.

        Returns:
            Whether a result was received.
        """
        if not wait and not self._pipe.poll():
            return False
        self._unanswered.popleft().set(self._receive())
        self._waiting_since = time.monotonic() if self._unanswered else None
        return True

    def _submit(self, method: Callable[..., Any], *arguments: Any) -> CodecFuture:
        try:
            self._pipe.send((method, [a.numpy() if isinstance(a, Tensor) else a for a in arguments]))
        except OSError:
            raise RuntimeError("the codec's process has ended") from None
        self._unanswered.append(_ProcessFuture(self))
        self._waiting_since = self._waiting_since or time.monotonic()
        return self._unanswered[-1]

    def _receive(self) -> Any:
        try:
            return self._pipe.recv()
        except (EOFError, OSError):
            raise RuntimeError("the codec's process has ended") from None


class _ProcessFuture:
    """The future result of a call to the process."""

    def __init__(self, worker: CodecProcess):
        self._worker, self._arrived, self._value = worker, False, None

    def set(self, value: Any) -> None:
        self._arrived, self._value = True, value

    def done(self) -> bool:
        while not self._arrived and self._worker.receive(wait=False):
            pass
        return self._arrived

    def result(self) -> Any:
        while not self._arrived:
            self._worker.receive(wait=True)
        if isinstance(self._value, _Failure):
            raise RuntimeError(f"the codec failed:\n{self._value.traceback}")
        return self._value


class _Failure(NamedTuple):
    traceback: str


def _serve(
    pipe: Connection, config: CodecConfig, dtype: torch.dtype, weights: bytes, slots: int, patch_samples: int
) -> None:
    """Run the process: answer calls until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    torch.set_num_threads(1)
    codec = Codec(config)
    codec.decoder.to(dtype)
    codec.load_state_dict(torch.load(io.BytesIO(weights), weights_only=True))
    batched = BatchedCodec(codec.eval(), slots, patch_samples)
    pipe.send("ready")
    while True:
        try:
            method, arguments = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            tensors = [torch.from_numpy(a) if isinstance(a, np.ndarray) else a for a in arguments]
            pipe.send(method(batched, *tensors))
        except Exception:
            pipe.send(_Failure(traceback.format_exc()))
