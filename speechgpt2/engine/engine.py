"""Many live sessions on one model: a step is schedule → run → deliver.

    engine = Engine.from_pretrained("mini", config=EngineConfig(slots=8))
    engine.start()
    session = engine.open(SessionSettings())             # see duplex/protocol.py
    engine.close(drain=10.0)

One thread executes the sessions' commands and makes the steps, so models and slots need no locks, and a step sees all
commands that were sent before it. An error in one session is reported to that session only.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from speechgpt2.codec.model import Codec
from speechgpt2.conversation import check_same_codes
from speechgpt2.duplex import protocol
from speechgpt2.duplex.protocol import EngineFull, EngineStats, EngineVoice, SessionSettings
from speechgpt2.engine.commands import CloseSlot, Command, OpenSlot
from speechgpt2.engine.config import EngineConfig
from speechgpt2.engine.core import EngineCore
from speechgpt2.engine.event_queue import SessionEventQueue
from speechgpt2.engine.input_encoder import InputEncoder
from speechgpt2.engine.session import Session
from speechgpt2.engine.session_identity import SessionIdentity
from speechgpt2.lm.model import SpeechLM
from speechgpt2.loading import Sources, load, memory_errors
from speechgpt2.nn.quantized import Kind, Quantization
from speechgpt2.sessions.entries import EntryWriter, Header, SavedSession

log = logging.getLogger("sg2.engine")


class Engine(protocol.Engine):
    """Many sessions on one model. The protocol describes the methods for clients.

    Args:
        codec: The codec.
        lm: The language model.
        config: The engine's configuration.
        clock: Returns the time in seconds.

    Attributes:
        prompt: The model's prompt, with its greetings.
        inputs: Checks and encodes what clients send.
        identity: Says which saved sessions can be resumed here.

    Raises:
        UserError: The codec and the language model use different codes.
    """

    def __init__(
        self,
        codec: Codec,
        lm: SpeechLM,
        config: EngineConfig | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        check_same_codes(codec, lm)
        self.clock = clock
        self.config = (config or EngineConfig()).for_device(lm.device.type, lm.config.backbone.width)
        self.core = EngineCore(codec, lm, self.config, clock, self._release)
        self.prompt = lm.prompt
        self.inputs = InputEncoder(codec, lm.prompt, self.core.runner.device)
        self.identity = SessionIdentity(codec, lm, self.config)
        self._commands: deque[tuple[Session, Command | OpenSlot | CloseSlot]] = deque()
        self._changed = threading.Condition()  # guards what clients and the engine's thread share
        self._leases: dict[int, Session] = {}  # by slot, from `open` to `close`
        self._closing = False
        self._thread: threading.Thread | None = None

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        codec: str | Path | None = None,
        codec_config: str | Path | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        config: EngineConfig | None = None,
        quantize: Kind | None = None,
    ) -> Engine:
        """Load a model by folder, built-in name or Hugging Face id. Its codec is replaced by `codec`, if given.

        Raises:
            UserError: A model cannot be found or loaded, or the sessions of `config` do not fit.
        """
        quantization = None if quantize is None else Quantization(quantize)
        return cls.load(Sources(name, codec, codec_config, dtype, quantization), device, config)

    @classmethod
    def load(cls, sources: Sources, device: str | torch.device = "cpu", config: EngineConfig | None = None) -> Engine:
        """Load what `sources` names. Raises `UserError` as `from_pretrained` does."""
        config, device = config or EngineConfig(), torch.device(device)
        with memory_errors(device):
            return cls(*load(sources, device, config.slots, config.context), config)

    # for clients, from any thread

    @property
    def alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive() and self.core.runner.codec.alive

    @property
    def voices(self) -> tuple[EngineVoice, ...]:
        greetings = self.prompt.greetings
        return tuple(
            EngineVoice(name, speech.text or "", name == greetings.default) for name, speech in greetings.speech.items()
        )

    @property
    def reads_aloud(self) -> bool:
        return self.prompt.template.chain_of_modality

    @property
    def calls_tools(self) -> bool:
        return self.prompt.template.tools

    def open(
        self, settings: SessionSettings, saved: SavedSession | None = None, writer: EntryWriter | None = None
    ) -> Session:
        settings = self.inputs.prepare_settings(settings)
        if saved is not None:
            self.identity.check(saved)
        with self._changed:
            if self._closing:
                raise EngineFull("the engine is closing and accepts no sessions")
            number = next((n for n in range(self.config.slots) if n not in self._leases), None)
            if number is None:
                raise EngineFull(f"all {self.config.slots} slots are in use; try again later")
            last_number = 0 if saved is None else saved.last_number
            session = Session(self, number, SessionEventQueue(self._wake), last_number, writer)
            self._leases[number] = session
            self.send(session, OpenSlot(settings, saved, writer))
        return session

    def session_header(self, id: str, model: str, owner: str) -> Header:
        return self.identity.header(id, model, owner)

    def encode(self, pcm: np.ndarray) -> np.ndarray:
        return self.inputs.encode(pcm).numpy()

    def stats(self) -> EngineStats:
        with self._changed:
            replying = sum(session.replying for session in self._leases.values())
            return EngineStats(self.config.slots, len(self._leases), replying, self.core.steps, self.core.busy_seconds)

    def add_step_observer(self, observer: Callable[[float], None]) -> None:
        self.core.step_observers.append(observer)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def close(self, drain: float = 0.0) -> None:
        end = self.clock() + drain
        with self._changed:
            self._closing = True
        while self.clock() < end and self.stats().replying:
            time.sleep(0.01)
        for session in list(self._leases.values()):
            session.close()
        if self._thread is not None:
            self._wake()
            self._thread.join()
        else:
            self._execute_commands()
        self.core.runner.close()

    # for sessions, from any thread

    def send(self, session: Session, command: Command | OpenSlot | CloseSlot) -> None:
        """Queue a command. It is executed before the next step."""
        with self._changed:
            self._commands.append((session, command))
            self._changed.notify()

    def close_session(self, session: Session) -> None:
        """End a session. Its slot is free at once, and is wiped before another session's commands are executed."""
        with self._changed:
            self._release(session)
            self.send(session, CloseSlot())

    # on the engine's thread

    def step(self) -> float | None:
        """Execute the commands since the last step, then make one step if one is due.

        Returns:
            Seconds until the next step is due; None if only a new command can cause one.
        """
        self._execute_commands()
        return self.core.step()

    def _run(self) -> None:
        try:
            while not self._finished():
                wait = self.step()
                with self._changed:
                    if wait != 0.0 and not self._commands and not self._finished():
                        self._changed.wait(wait)
        except Exception:
            log.exception("the engine failed")
            self._closing = True
            for session in list(self._leases.values()):
                self.core.fail(session)

    def _finished(self) -> bool:
        return self._closing and not (self._leases or self.core.sessions)

    def _execute_commands(self) -> None:
        while self._commands:
            self.core.execute(*self._commands.popleft())

    def _release(self, session: Session) -> None:
        """Free a session's slot."""
        with self._changed:
            if self._leases.get(session.slot_number) is session:  # another session may have it already
                del self._leases[session.slot_number]

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify()
