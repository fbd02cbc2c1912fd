"""Many live sessions on one model: a step is schedule → run → deliver.

    engine = Engine.from_pretrained("mini", config=EngineConfig(slots=8))
    engine.start()
    session = engine.open(SessionSettings())             # see dialogue/protocol.py
    engine.close(drain=10.0)

One thread steps; whoever talks to a session only leaves a note for it. So models and slots need no locks, and a step
sees all that was asked before it. What goes wrong for one session is told to that session alone.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, ParamSpec, TypeVar

import numpy as np
import torch

from speechgpt2.codec.model import Codec, check_codes
from speechgpt2.duplex.protocol import EngineFull, EngineStats, SessionSettings
from speechgpt2.engine.config import EngineConfig
from speechgpt2.engine.mailbox import Mailbox
from speechgpt2.engine.runner import Drawn, Part, Runner
from speechgpt2.engine.scheduler import Plan, schedule
from speechgpt2.engine.session import Session
from speechgpt2.engine.slot import History, Slot
from speechgpt2.errors import UserError
from speechgpt2.lm import tools
from speechgpt2.lm.model import SpeechLM
from speechgpt2.types import Error, Patches, Speech, Text, ToolCall, Turn

T = TypeVar("T")
P = ParamSpec("P")
log = logging.getLogger("sg2.engine")


class Coming(NamedTuple):
    """What the codec makes for a session, and the slot's way to take it."""

    session: Session
    part: Part
    take: Callable[[Slot, np.ndarray], None]


class Engine:
    """See the module's text, and `speechgpt2.duplex.protocol.Engine`. `clock` gives seconds."""

    def __init__(
        self,
        codec: Codec,
        lm: SpeechLM,
        config: EngineConfig | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Errors: `UserError` if the codec's codes are not those that the language model speaks."""
        ours, theirs = codec.config.quantizer, lm.config
        if (ours.codebooks, ours.size) != (theirs.codebooks, theirs.codebook_size):
            raise UserError("codec and language model do not speak the same codes")
        self.config, self.clock = config or EngineConfig(), clock
        self.runner = Runner(codec, lm, self.config)
        self._codec, self._prompt = codec, lm.prompt
        self._notes: deque[tuple[Session, Callable[[Session], None]]] = deque()
        self._news = threading.Condition()  # guards what callers and the thread share
        self._leases: dict[int, Session] = {}  # by slot, from `open` to `close`
        self._sessions: dict[int, Session] = {}  # as the thread knows them, which is later: what was asked, in order
        self._observers: list[Callable[[float], None]] = []
        self._coming: deque[Coming] = deque()  # in the order in which it was asked for
        self._steps, self._busy = 0, 0.0
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
    ) -> Engine:
        """A model by folder, built-in name or Hugging Face id; the codec from there too, or from `codec`."""
        ears = Codec.from_pretrained(codec or name, config=codec_config, device=device)
        return cls(ears, SpeechLM.from_pretrained(name, dtype=dtype, device=device), config)

    # for callers, from any thread

    @property
    def alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive() and self.runner.sounds.alive

    def open(self, settings: SessionSettings) -> Session:
        settings = self.with_codes(settings)
        with self._news:
            if self._closing:
                raise EngineFull("the engine is closing and takes nobody in")
            number = next((n for n in range(self.config.slots) if n not in self._leases), None)
            if number is None:
                raise EngineFull(f"all {self.config.slots} slots are taken; try again later")
            session = self._leases[number] = Session(self, number, Mailbox(self._wake))
            self._note(session, lambda session: self._admit(session, settings))
        return session

    def encode(self, pcm: np.ndarray) -> np.ndarray:
        pcm = np.asarray(pcm, np.float32)
        if pcm.ndim != 1 or not len(pcm) or not np.isfinite(pcm).all():
            raise UserError("speech must be a row of samples, float32 at 24 kHz, all of them numbers")
        return self._codec.encode(torch.from_numpy(pcm)[None].to(self.runner.device))[0].cpu().numpy()

    def stats(self) -> EngineStats:
        with self._news:
            speaking = sum(session.replying for session in self._leases.values())
            return EngineStats(self.config.slots, len(self._leases), speaking, self._steps, self._busy)

    def add_step_observer(self, observer: Callable[[float], None]) -> None:
        self._observers.append(observer)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def close(self, drain: float = 0.0) -> None:
        end = self.clock() + drain
        with self._news:
            self._closing = True
        while self.clock() < end and self.stats().speaking:
            time.sleep(0.01)
        for session in list(self._leases.values()):
            session.close()
        if self._thread is not None:
            self._wake()
            self._thread.join()
        else:
            self._obey()
        self.runner.close()

    # for sessions, from any thread

    def post(self, session: Session, action: Callable[[Slot], None]) -> None:
        """Ask something of a session's slot, if it still has one by then."""

        def note(session: Session) -> None:
            if session.slot is not None:
                action(session.slot)

        self._note(session, note)

    def release(self, session: Session) -> None:
        """The session is over. Its slot is free at once: it is wiped before the thread hears of the next session."""
        with self._news:
            self._end_lease(session)
            self._note(session, self._dismiss)

    def with_codes(self, settings: SessionSettings) -> SessionSettings:
        """The settings with a greeting that is encoded. Errors: `UserError` for one that cannot be."""
        if settings.greeting is None:
            return settings
        codes = self._codes(settings.greeting)
        return replace(settings, greeting=Speech(codes=codes.numpy(), text=settings.greeting.text))

    def as_history(self, turn: Turn) -> History:
        """A turn with its speech encoded. Errors: `UserError`."""
        if (written := tools.render_tool_turn(turn)) is not None:
            return History(turn.role, written, None)
        segment = turn.segments[0] if len(turn.segments) == 1 else None
        if turn.role == "system" or segment is None or isinstance(segment, ToolCall):
            raise UserError("a turn to remember is the user's or the assistant's, and one segment of text or speech")
        if isinstance(segment, Text):
            return History(turn.role, segment.text, None)
        return History(turn.role, segment.text, self._codes(segment))

    def _codes(self, speech: Speech) -> torch.Tensor:
        if speech.codes is None and speech.pcm is None:
            raise UserError("speech must hold samples or codes")
        codes = torch.as_tensor(speech.codes if speech.codes is not None else self.encode(speech.pcm))  # type: ignore[arg-type]
        check_codes(codes, self._codec.config)
        return codes.to(torch.int64)

    # the engine's thread

    def step(self) -> float | None:
        """One step if one is due; returns how many seconds to wait for the next (None: until something happens)."""
        self._obey()
        self._deliver()
        now = self.clock()
        needs = [slot.need(now) for slot in self._slots().values()]
        plan = schedule(needs, self.config)
        if plan.idle and not self._coming:
            return plan.wait
        began = time.perf_counter()
        try:
            self._encode(plan)
            rests = any(need.awaited for need in needs) and not plan.urgent
            if self._coming and (rests or not (plan.read or plan.draw)):
                self._deliver(wait=True)
                return 0.0
            self._work(plan)
        except Exception:
            log.exception("a step failed")
            for number in {*plan.encode, *plan.read, *plan.draw}:
                self._fail(self._sessions.get(number))
        self._count(time.perf_counter() - began)
        return 0.0

    def _encode(self, plan: Plan) -> None:
        """Have the codec listen. What it hears will be read in a step to come."""
        slots = self._slots()
        sounds = {n: sound for n in plan.encode if (sound := self._try(n, slots[n].sound)) is not None}
        for n, codes in (self.runner.encode(sounds) if sounds else {}).items():
            self._coming.append(Coming(self._sessions[n], codes, partial(Slot.listened, sound=sounds[n])))

    def _work(self, plan: Plan) -> None:
        """Read, draw and speak, all slots together; in between, what the codec has made is delivered."""
        for n, slot in self._slots().items():
            self.runner.set_position(n, slot.context.taken)
        reads = {n: patch for n in plan.read if (patch := self._read(n)) is not None}
        slots = self._slots()  # less those that failed
        settled = [n for n in plan.draw if n in slots and n not in reads]
        draws = {n: draw for n in settled if (draw := self._try(n, slots[n].draw)) is not None}
        for told in self.runner.step(reads, draws):
            for n, drawn in told.items():
                self._take(n, drawn)
            self._deliver()

    def _take(self, number: int, drawn: list[Drawn]) -> None:
        """What was drawn for a slot, if it still has a use for it."""
        slot = self._slots().get(number)
        if slot is not None and slot.reply is not None:
            sounded = partial(self._sounded, slot.reply.number)
            self._coming.extend(Coming(self._sessions[number], p.sound, sounded) for p in drawn if p.sound)
            self._try(number, slot.drawn, drawn)

    def _deliver(self, wait: bool = False) -> None:
        """Pass on what the codec has made, or all that it was asked for if it is worth to `wait`."""
        while self._coming and (wait or self._coming[0].part.done()):
            coming = self._coming.popleft()
            if coming.session.slot is not None:
                self._try(coming.session.number, self._pass_on, coming, coming.session.slot)

    def _pass_on(self, coming: Coming, slot: Slot) -> None:
        coming.take(slot, coming.part.result())

    def _sounded(self, reply: int, slot: Slot, pcm: np.ndarray) -> None:
        slot.sounded(reply, pcm, self.clock())

    def _read(self, number: int) -> Patches | None:
        """Take in the next piece; one that is a single patch is left for the step that all slots share."""
        slot = self._slots().get(number)
        if slot is None or not slot.context.waiting:
            return None
        patches = slot.context.take()
        if patches.text.shape[1] == 1:
            return patches
        self.runner.read(number, patches)
        self._deliver()
        return None

    def _slots(self) -> dict[int, Slot]:
        return {number: session.slot for number, session in self._sessions.items() if session.slot is not None}

    def _try(self, number: int, action: Callable[P, T], *args: P.args, **options: P.kwargs) -> T | None:
        """What one slot does by itself within a step; if it cannot, its reply ends, and the others go on."""
        session = self._sessions[number]
        try:
            return action(*args, **options)
        except UserError as error:
            assert session.slot is not None
            session.slot.reply = None
            self._complain(session, error)
        except Exception:
            log.exception("a session failed in a step")
            self._fail(session)
        return None

    def _run(self) -> None:
        try:
            while not self._done():
                wait = self.step()
                with self._news:
                    if wait != 0.0 and not self._notes and not self._done():
                        self._news.wait(wait)
        except Exception:
            log.exception("the engine failed")
            self._closing = True
            for session in list(self._leases.values()):
                self._fail(session)

    def _done(self) -> bool:
        return self._closing and not (self._leases or self._sessions)

    def _obey(self) -> None:
        """Do what was asked since the last step."""
        while self._notes:
            session, action = self._notes.popleft()
            try:
                action(session)
            except UserError as error:
                self._complain(session, error)
            except Exception:
                log.exception("a session failed")
                self._fail(session)

    def _admit(self, session: Session, settings: SessionSettings) -> None:
        try:
            delay = self._codec.config.delay
            session.slot = Slot(session.number, self._prompt, self.config, settings, delay, session.mailbox)
            self._sessions[session.number] = session
        except UserError as error:
            self._complain(session, error)
            session.close()

    def _complain(self, session: Session, error: UserError) -> None:
        """Tell a session what cannot be done, which ends the reply that it waits for."""
        ended = session.slot is None or session.slot.reply is None
        session.mailbox.put(session.mailbox.reply if ended else None, Error(str(error)))

    def _fail(self, session: Session | None) -> None:
        if session is None:
            return
        session.mailbox.put(session.mailbox.reply, Error("the engine failed"))
        session.mailbox.close()
        self._dismiss(session)
        with self._news:
            self._end_lease(session)

    def _dismiss(self, session: Session) -> None:
        session.slot = None
        if self._sessions.get(session.number) is session:
            self.runner.wipe(session.number)
            del self._sessions[session.number]

    def _end_lease(self, session: Session) -> None:
        if self._leases.get(session.number) is session:  # and not another's by now
            del self._leases[session.number]

    def _count(self, seconds: float) -> None:
        self._steps += 1
        self._busy += seconds
        for observer in self._observers:
            observer(seconds)

    def _note(self, session: Session, action: Callable[[Session], None]) -> None:
        with self._news:
            self._notes.append((session, action))
            self._news.notify()

    def _wake(self) -> None:
        with self._news:
            self._news.notify()
