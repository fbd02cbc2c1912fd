"""The codec of all slots, audio to codes and codes to audio, in a thread or process of its own.

The codec takes half the time of a speaking step and needs only codes from the language model, so both run at the same
time. A process is better than a thread: two threads of many small operations wait for the interpreter's lock most of
the time. Calls are executed in their order.

    worker = CodecProcess(codec, slots=8, patch_samples=2880)    # or CodecThread(…)
    future = worker.encode({3: AudioChunk(…)})                   # meanwhile the model works
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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from speechgpt2.codec.config import CodecConfig
from speechgpt2.codec.model import Codec
from speechgpt2.engine.batch_rows import BatchRows
from speechgpt2.nn.cuda_graph import SideStream
from speechgpt2.streaming import tree_map
from speechgpt2.types import FRAME_SIZE

START_TIMEOUT = 120.0  # seconds that the process may take to start
MAX_SILENCE = 10.0  # seconds without an answer after which the process is ended; an answer takes milliseconds
WATCH_INTERVAL = 1.0  # seconds
MAX_RESTARTS, RESTART_PERIOD = 3, 60.0  # the codec has failed if it needs more than 3 restarts in 60 s
JOURNAL_PATCHES = 100  # 12 s of each turn and reply are replayed; `mini`'s attention sees no further back

log = logging.getLogger("sg2.engine")
T = TypeVar("T")


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
        self.rows = BatchRows(slots, codec.device)
        self.init_encoder_state = partial(codec.init_encoder_state, in_place=True)
        self.init_decoder_state = partial(codec.init_decoder_state, in_place=True)
        self.encoder_states = self.init_encoder_state(self.rows.count)
        self.decoder_states = self.init_decoder_state(self.rows.count)
        all_rows, no_row = torch.arange(self.rows.count), self.rows.mask(())
        pcm, lengths = self.rows.to_device(np.zeros((self.rows.count, patch_samples), np.float32)), no_row.long()
        codes = no_row.long()[:, None, None].expand(-1, patch_samples // FRAME_SIZE, codec.config.quantizer.codebooks)
        self.encode_rows = self.rows.graphed(self._encode_rows, (all_rows, pcm, lengths, no_row))
        self.decode_rows = self.rows.graphed(self._decode_rows, (all_rows, codes, no_row))

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
        self.rows.reset(self.encoder_states, self.init_encoder_state, first)
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
        self.rows.reset(self.decoder_states, self.init_decoder_state, new_replies)
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
    """Runs the codec in a thread of this process: for CUDA, or a single processor.

    On CUDA it has a stream of its own, so that it computes beside the model.
    """

    def __init__(self, codec: Codec, slots: int, patch_samples: int):
        self._codec = BatchedCodec(codec, slots, patch_samples)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="codec")
        self._stream = SideStream(self._codec.rows.device)

    @property
    def alive(self) -> bool:
        """Always true: the thread lives as long as the process."""
        return True

    def close(self) -> None:
        """Stop the thread."""
        self._thread.shutdown()

    def _submit(self, method: Callable[..., Any], *arguments: Any) -> CodecFuture:
        return self._thread.submit(self._stream.in_order(method), self._codec, *arguments)


class CodecProcess(CodecWorker):
    """Runs the codec on the CPU, in a process of its own with one thread. If it dies or hangs, another one continues.

    The new process first repeats the last calls of each slot (`CodecJournal`), which gives it the states of the old
    one, and then the calls without a result. Sessions notice only a pause.

    Raises:
        RuntimeError: The process does not start, or has ended too often.
    """

    def __init__(self, codec: Codec, slots: int, patch_samples: int):
        self._codec, self._slots, self._patch_samples = codec, slots, patch_samples
        self._lock = threading.RLock()  # guards all below: calls come from one thread, restarts also from the watchdog
        self._unanswered: deque[_ProcessFuture] = deque()
        self._waiting_since: float | None = None  # when the process began to work on the oldest unanswered call
        self._journal = CodecJournal()
        self._restarts: list[float] = []  # times of the restarts in the last `RESTART_PERIOD`
        self._failed = False
        self._closed = threading.Event()
        self._start()
        threading.Thread(target=self._watch, name="codec watchdog", daemon=True).start()

    @property
    def alive(self) -> bool:
        """Whether the process runs, or will again."""
        return not (self._failed or self._closed.is_set())

    def close(self) -> None:
        """Close the pipe, which ends the process, and wait for its end."""
        self._closed.set()
        with self._lock:
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
        with self._lock:
            try:
                if not wait and not self._pipe.poll():
                    return False
                value = self._pipe.recv()
            except (EOFError, OSError):
                self._restart()
                return self.receive(wait)
            future = self._unanswered.popleft()
            if not isinstance(value, _Failure):
                self._journal.add(future.method, future.arguments)
            future.set(value)
            self._waiting_since = time.monotonic() if self._unanswered else None
        return True

    def _submit(self, method: Callable[..., Any], *arguments: Any) -> CodecFuture:
        future = _ProcessFuture(self, method, arguments)
        with self._lock:
            self._unanswered.append(future)
            self._waiting_since = self._waiting_since or time.monotonic()
            try:
                self._send(method, arguments)
            except OSError:
                self._restart()
        return future

    def _send(self, method: Callable[..., Any], arguments: Sequence[Any]) -> None:
        self._pipe.send((method, [a.numpy() if isinstance(a, Tensor) else a for a in arguments]))

    def _start(self) -> None:
        weights = io.BytesIO()
        torch.save(self._codec.state_dict(), weights)
        spawn = multiprocessing.get_context("spawn")
        self._pipe, child_pipe = spawn.Pipe()
        dtype = self._codec.decoder.widen.weight.dtype
        arguments = (child_pipe, self._codec.config, dtype, self._slots, self._patch_samples)
        self.process = spawn.Process(target=_serve, args=arguments, name="codec", daemon=True)
        self.process.start()
        child_pipe.close()
        self._pipe.send_bytes(weights.getbuffer())  # not as an argument, which the process would keep
        if not self._pipe.poll(START_TIMEOUT):
            raise RuntimeError("the codec's process does not start")
        self._pipe.recv()

    def _restart(self) -> None:
        """Start a new process with the states of the old one, and repeat the calls without a result.

        Raises:
            RuntimeError: It ends again and again, or was closed.
        """
        while True:
            self._count_restart()
            began, self._waiting_since = time.monotonic(), None
            self._pipe.close()
            self.process.kill()
            self.process.join()
            with suppress(EOFError, OSError):  # the new one has died, too
                self._start()
                for method, arguments in self._journal.calls():
                    self._send(method, arguments)
                    self._pipe.recv()
                for future in self._unanswered:
                    self._send(future.method, future.arguments)
                self._waiting_since = time.monotonic() if self._unanswered else None
                log.warning("the codec's process was restarted in %.1f s", time.monotonic() - began)
                return

    def _count_restart(self) -> None:
        if self._closed.is_set():
            raise RuntimeError("the codec's process has ended")
        now = time.monotonic()
        self._restarts = [restart for restart in self._restarts if now - restart < RESTART_PERIOD]
        if len(self._restarts) >= MAX_RESTARTS:
            self._failed = True
            raise RuntimeError(f"the codec's process has ended, more than {MAX_RESTARTS} times in a short time")
        log.error("the codec's process has ended; another one is started")
        self._restarts.append(now)

    def _watch(self) -> None:
        """End a process that does not answer; replace one that has ended while nobody waits for it."""
        while self.alive and not self._closed.wait(WATCH_INTERVAL):
            since = self._waiting_since
            if since is not None and time.monotonic() - since > MAX_SILENCE:
                log.error("the codec's process has not answered for %.0f s and is ended", MAX_SILENCE)
                self._waiting_since = None
                self.process.kill()  # the next to read its answer finds the pipe closed, and restarts it
            elif not self.process.is_alive() and self._lock.acquire(blocking=False):
                try:
                    if not self.process.is_alive() and not self._closed.is_set():
                        self._restart()
                except RuntimeError:
                    log.exception("the codec's process cannot be replaced")
                finally:
                    self._lock.release()


class CodecJournal:
    """The calls that lead to the codec's present states: of each turn and reply, the last `JOURNAL_PATCHES`.

    What came before has no influence, or hardly any: attention sees a limited context.
    """

    def __init__(self) -> None:
        self._encoded: dict[int, deque[AudioChunk]] = {}
        self._decoded: dict[int, deque[Tensor]] = {}

    def add(self, method: Callable[..., Any], arguments: Sequence[Any]) -> None:
        """Note a call of `BatchedCodec` that has a result."""
        if method is BatchedCodec.encode:
            self._add_chunks(*arguments)
        elif method is BatchedCodec.decode:
            self._add_codes(*arguments)
        else:
            (slot,) = arguments
            self._encoded.pop(slot, None)
            self._decoded.pop(slot, None)

    def calls(self) -> Iterator[tuple[Callable[..., Any], Sequence[Any]]]:
        """Calls that bring new states to where the present ones are."""
        for number, chunks in _rounds(self._encoded):
            again = {slot: chunk._replace(first=number == 0) for slot, chunk in chunks.items()}
            yield BatchedCodec.encode, (again,)
        for number, codes in _rounds(self._decoded):
            slots, speaking = torch.tensor(list(codes)), torch.ones(len(codes), dtype=torch.bool)
            new_replies = list(codes) if number == 0 else []
            yield BatchedCodec.decode, (slots, torch.stack(list(codes.values())), speaking, new_replies)

    def _add_chunks(self, chunks: Mapping[int, AudioChunk]) -> None:
        for slot, chunk in chunks.items():
            if chunk.first:
                self._encoded[slot] = deque(maxlen=JOURNAL_PATCHES)
            if not chunk.final:  # a final one changes no state
                self._encoded.setdefault(slot, deque(maxlen=JOURNAL_PATCHES)).append(chunk)

    def _add_codes(self, slots: Tensor, codes: Tensor, speaking: Tensor, new_replies: Iterable[int]) -> None:
        for slot in new_replies:
            self._decoded[slot] = deque(maxlen=JOURNAL_PATCHES)
        for slot, patch, speaks in zip(slots.tolist(), codes, speaking.tolist(), strict=True):
            if speaks:
                self._decoded.setdefault(slot, deque(maxlen=JOURNAL_PATCHES)).append(patch)


def _rounds(histories: Mapping[int, Sequence[T]]) -> Iterator[tuple[int, dict[int, T]]]:
    """Go through several histories together: the first entry of each, the second of each, and so on."""
    for number in range(max(map(len, histories.values()), default=0)):
        yield number, {slot: history[number] for slot, history in histories.items() if number < len(history)}


class _ProcessFuture:
    """The future result of a call to the process."""

    def __init__(self, worker: CodecProcess, method: Callable[..., Any], arguments: Sequence[Any]):
        self.method, self.arguments = method, arguments
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


def _receive_codec(pipe: Connection, config: CodecConfig, dtype: torch.dtype) -> Codec:
    codec = Codec(config).eval()
    codec.decoder.to(dtype)
    codec.load_state_dict(torch.load(io.BytesIO(pipe.recv_bytes()), weights_only=True))
    return codec


def _serve(pipe: Connection, config: CodecConfig, dtype: torch.dtype, slots: int, patch_samples: int) -> None:
    """Run the process: answer calls until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    torch.set_num_threads(1)
    batched = BatchedCodec(_receive_codec(pipe, config, dtype), slots, patch_samples)
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
