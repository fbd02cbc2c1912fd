"""The codec over all slots: sound to codes, codes to sound; and where it computes.

Half of a speaking step is the codec's, and it needs nothing from the model but codes. So it has a thread of its own,
or better a process: two threads of many small operations wait for each other's interpreter most of the time. What is
asked is done in the order of asking.

    sounds = Process(codec, slots=8, samples=2880)    # or Thread(…)
    answer = sounds.ask("encode", {3: Sound(…)})      # meanwhile the model goes on
    codes = answer.result()
"""

from __future__ import annotations

import io
import multiprocessing
import signal
import traceback
from collections import deque
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from speechgpt2.codec.config import CodecConfig
from speechgpt2.codec.model import Codec
from speechgpt2.engine.rows import Rows
from speechgpt2.streaming import tree_map
from speechgpt2.types import FRAME_SIZE

STARTING = 120.0  # seconds that a process may take until it is there


class Sound(NamedTuple):
    """A patch of the user's sound, `pcm [N]` of at most a patch; `fresh`: the first, `final`: the last of a turn."""

    pcm: np.ndarray
    fresh: bool
    final: bool


class CodecRows:
    """The codec, and a row of both its states for every slot. A patch has `samples` samples."""

    def __init__(self, codec: Codec, slots: int, samples: int):
        self.samples = samples
        codec.optimize_for_inference(slots)
        self.codec = codec
        self.rows = Rows(slots, codec.quantizer.codebooks[0].embed.device)  # type: ignore[arg-type]
        self.ears = codec.init_encoder_state(self.rows.count)
        self.voices = codec.init_decoder_state(self.rows.count)
        everyone, nobody = torch.arange(self.rows.count), self.rows.mask(())
        pcm, lengths = self.rows.put(np.zeros((self.rows.count, samples), np.float32)), nobody.long()
        codes = nobody.long()[:, None, None].expand(-1, samples // FRAME_SIZE, codec.config.quantizer.codebooks)
        self.hear = self.rows.record(self._hear, everyone, pcm, lengths, nobody)
        self.speak = self.rows.record(self._speak, everyone, codes, nobody)

    @torch.inference_mode()
    def encode(self, sounds: Mapping[int, Sound]) -> dict[int, np.ndarray]:
        """The codes `[T, K]` of each slot's sound. A final one leaves the row as it was, in case more follows."""
        pcm, lengths = np.zeros((self.rows.count, self.samples), np.float32), np.zeros(self.rows.count, np.int64)
        for slot, sound in sounds.items():
            pcm[slot, : len(sound.pcm)], lengths[slot] = sound.pcm, len(sound.pcm)
        self.rows.reset(self.ears, self.codec.init_encoder_state, [n for n in sounds if sounds[n].fresh])
        going_on = self.rows.mask(n for n in sounds if not sounds[n].final)
        told, result = (self.rows.put(pcm), self.rows.put(lengths), going_on), {}
        for rows in self.rows.groups(sounds):
            codes = self.hear(rows, *self.rows.select(told, rows))
            for slot, heard in zip(rows.tolist(), codes.cpu().numpy(), strict=True):
                if slot in sounds:
                    result[slot] = heard[: self.codec.frames(len(sounds[slot].pcm))]
        return result

    @torch.inference_mode()
    def decode(self, slots: Tensor, codes: Tensor, speaking: Tensor, fresh: Iterable[int]) -> np.ndarray:
        """The sound `[R, N]` of a group's `slots [R]` with `codes [R, G, K]`; those who are not `speaking [R]` stay as
        they were, and what they get means nothing. First the voices of the slots `fresh` are made new.
        """
        self.rows.reset(self.voices, self.codec.init_decoder_state, fresh)
        codes = codes.clamp(max=self.codec.config.quantizer.size - 1)
        told = (self.rows.spread(slots, codes), self.rows.spread(slots, speaking))
        pcm = torch.zeros(self.rows.count, self.samples, device=self.rows.device)
        for rows in self.rows.groups(range(self.rows.count) if self.rows.fixed else slots[speaking].tolist()):
            self.rows.overwrite(pcm, rows, self.speak(rows, *self.rows.select(told, rows)))
        return self.rows.select(pcm, slots).cpu().numpy()

    def _hear(self, rows: Tensor, pcm: Tensor, lengths: Tensor, going_on: Tensor) -> Tensor:
        before = self.rows.select(self.ears, rows)
        codes, after = self.codec.encode(pcm, before, lengths=lengths, final=True)
        self.rows.keep(self.ears, rows, going_on, after, before)
        return codes

    def _speak(self, rows: Tensor, codes: Tensor, speaking: Tensor) -> Tensor:
        before = self.rows.select(self.voices, rows)
        pcm, after = self.codec.decode(codes, before)
        self.rows.keep(self.voices, rows, speaking, after, before)
        return pcm

    @torch.inference_mode()
    def wipe(self, slot: int) -> None:
        """Nothing of a session stays behind."""
        tree_map(lambda leaf: leaf[slot].zero_(), (self.ears, self.voices))


class Answer(Protocol):
    """What was asked for: whether it is there, and it, waiting if need be."""

    def done(self) -> bool: ...
    def result(self) -> Any: ...


class Sounds(Protocol):
    """Where a `CodecRows` computes."""

    @property
    def alive(self) -> bool: ...
    def ask(self, method: str, *arguments: Any) -> Answer: ...
    def close(self) -> None: ...


class Thread:
    """In this process: on a device, or where starting another process is not worth it."""

    alive = True

    def __init__(self, codec: Codec, slots: int, samples: int):
        self.rows = CodecRows(codec, slots, samples)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sounds")

    def ask(self, method: str, *arguments: Any) -> Answer:
        return self._thread.submit(getattr(self.rows, method), *arguments)

    def close(self) -> None:
        self._thread.shutdown()


class Process:
    """In a process of its own, with one thread, on the CPU. Errors: RuntimeError if it does not start, or has ended."""

    def __init__(self, codec: Codec, slots: int, samples: int):
        weights = io.BytesIO()
        torch.save(codec.state_dict(), weights)
        spawn = multiprocessing.get_context("spawn")
        self._line, theirs = spawn.Pipe()
        given = (theirs, codec.config, codec.decoder.widen.weight.dtype, weights.getvalue(), slots, samples)
        self._process = spawn.Process(target=_serve, args=given, name="sounds", daemon=True)
        self._process.start()
        theirs.close()
        self._waiting: deque[_Awaited] = deque()
        if not self._line.poll(STARTING):
            raise RuntimeError("the codec's process does not start")
        self._receive()

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def ask(self, method: str, *arguments: Any) -> Answer:
        try:
            self._line.send((method, [a.numpy() if isinstance(a, Tensor) else a for a in arguments]))
        except OSError:
            raise RuntimeError("the codec's process has ended") from None
        self._waiting.append(_Awaited(self))
        return self._waiting[-1]

    def receive(self) -> None:
        """The oldest answer that is waited for."""
        awaited = self._waiting.popleft()
        awaited.there, awaited.value = True, self._receive()

    def anything(self) -> bool:
        """Whether an answer has come."""
        return self._line.poll()

    def close(self) -> None:
        self._line.close()
        self._process.join(5.0)

    def _receive(self) -> Any:
        try:
            return self._line.recv()
        except (EOFError, OSError):
            raise RuntimeError("the codec's process has ended") from None


class _Awaited:
    """An answer of a process."""

    def __init__(self, process: Process):
        self.process, self.there, self.value = process, False, None

    def done(self) -> bool:
        while not self.there and self.process.anything():
            self.process.receive()
        return self.there

    def result(self) -> Any:
        while not self.there:
            self.process.receive()
        if isinstance(self.value, _Failed):
            raise RuntimeError(f"the codec failed:\n{self.value.trace}")
        return self.value


class _Failed(NamedTuple):
    trace: str


def _serve(line: Connection, config: CodecConfig, dtype: torch.dtype, weights: bytes, slots: int, samples: int) -> None:
    """The process: answers until the line is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one who asks decides when it is over
    torch.set_num_threads(1)
    codec = Codec(config)
    codec.decoder.to(dtype)
    codec.load_state_dict(torch.load(io.BytesIO(weights), weights_only=True))
    rows = CodecRows(codec.eval(), slots, samples)
    line.send("ready")
    while True:
        try:
            method, arguments = line.recv()
        except (EOFError, OSError):
            return
        try:
            given = [torch.from_numpy(a) if isinstance(a, np.ndarray) else a for a in arguments]
            line.send(getattr(rows, method)(*given))
        except Exception:
            line.send(_Failed(traceback.format_exc()))
