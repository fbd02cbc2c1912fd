"""The engine's core, on the engine's thread: executes commands and makes steps.

A step is schedule → run → deliver: the scheduler plans it, the model runner and the codec compute it for all slots
together, and each slot takes its results. What goes wrong for one session is told to that session alone.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, ParamSpec, TypeVar

import numpy as np

from speechgpt2.codec.model import Codec
from speechgpt2.engine.commands import CloseSlot, Command, OpenSlot
from speechgpt2.engine.config import EngineConfig
from speechgpt2.engine.model_runner import CodecResult, GeneratedPatch, ModelRunner
from speechgpt2.engine.scheduler import StepPlan, schedule
from speechgpt2.engine.session import Session
from speechgpt2.engine.slot import Slot
from speechgpt2.errors import UserError
from speechgpt2.lm.model import SpeechLM
from speechgpt2.types import Error, Patches

T = TypeVar("T")
P = ParamSpec("P")
log = logging.getLogger("sg2.engine")


class PendingCodecResult(NamedTuple):
    """What the codec computes for a session, and the slot's method that takes it."""

    session: Session
    result: CodecResult
    take: Callable[[Slot, np.ndarray], None]


class EngineCore:
    """The models, the sessions that have a slot, and the loop body.

    Args:
        codec: The codec.
        lm: The language model.
        config: Sizes and times.
        clock: Gives seconds.
        release: Called with a session that has failed, to free its slot for others.
    """

    def __init__(
        self,
        codec: Codec,
        lm: SpeechLM,
        config: EngineConfig,
        clock: Callable[[], float],
        release: Callable[[Session], None],
    ):
        self.config, self.clock = config, clock
        self.runner = ModelRunner(codec, lm, config)
        self.sessions: dict[int, Session] = {}  # by slot
        self.steps, self.busy_seconds = 0, 0.0
        self.step_observers: list[Callable[[float], None]] = []
        self._prompt, self._codec_delay = lm.prompt, codec.config.delay
        self._release = release
        self._codec_results: deque[PendingCodecResult] = deque()  # in the order in which they were asked for

    def execute(self, session: Session, command: Command | OpenSlot | CloseSlot) -> None:
        """Execute a session's command. Errors are told to the session."""
        try:
            match command:
                case OpenSlot(settings):
                    slot = Slot(session.number, self._prompt, self.config, settings, self._codec_delay, session.outbox)
                    session.slot = slot
                    self.sessions[session.number] = session
                case CloseSlot():
                    self._close_slot(session)
                case _ if session.slot is not None:
                    session.executed(command)
                    session.slot.handle(command)
        except UserError as error:
            self._report(session, error)
            if isinstance(command, OpenSlot):
                session.close()
        except Exception:
            log.exception("a session failed")
            self.fail(session)

    def step(self) -> float | None:
        """Make one step if one is due.

        Returns:
            Seconds to wait for the next; None until something happens.
        """
        self._deliver()
        now = self.clock()
        statuses = [slot.status(now) for slot in self._slots().values()]
        plan = schedule(statuses, self.config, self._prompt.config.patch_seconds)
        if plan.idle and not self._codec_results:
            return plan.wait
        began = time.perf_counter()
        try:
            self._encode_audio(plan)
            # While the codec works on what a user waits for, the model would only slow it down.
            rests = any(status.latency_critical for status in statuses) and not plan.urgent
            if self._codec_results and (rests or not (plan.prefill or plan.sample)):
                self._deliver(wait=True)
                return 0.0
            self._run_model(plan)
        except Exception:
            log.exception("a step failed")
            for number in {*plan.encode, *plan.prefill, *plan.sample}:
                self.fail(self.sessions.get(number))
        self._count_step(time.perf_counter() - began)
        return 0.0

    def _encode_audio(self, plan: StepPlan) -> None:
        """Give the users' audio to the codec. Its codes are prefilled in a later step."""
        slots = self._slots()
        chunks = {n: chunk for n in plan.encode if (chunk := self._guarded(n, slots[n].next_audio_chunk)) is not None}
        for n, result in (self.runner.encode(chunks) if chunks else {}).items():
            take = partial(Slot.audio_encoded, chunk=chunks[n])
            self._codec_results.append(PendingCodecResult(self.sessions[n], result, take))

    def _run_model(self, plan: StepPlan) -> None:
        """Prefill and sample, all slots together; in between, deliver what the codec has computed."""
        for n, slot in self._slots().items():
            self.runner.set_position(n, slot.history.context.kv_length)
        prefill = {n: patch for n in plan.prefill if (patch := self._prefill(n)) is not None}
        slots = self._slots()  # without those that failed
        ready = [n for n in plan.sample if n in slots and n not in prefill]
        sample = {n: params for n in ready if (params := self._guarded(n, slots[n].sample_params)) is not None}
        for generated in self.runner.step(prefill, sample):
            for n, patches in generated.items():
                self._take_patches(n, patches)
            self._deliver()

    def _prefill(self, number: int) -> Patches | None:
        """Prefill a slot's next chunk. One of a single patch is returned, for the step that all slots share."""
        slot = self._slots().get(number)
        if slot is None or not slot.history.context.pending:
            return None
        context = slot.history.context
        chunk = context.next_chunk()
        if chunk.text.shape[1] == 1:
            return chunk
        self.runner.prefill(number, chunk, context.prefix_key(context.kv_length))
        self._deliver()
        return None

    def _take_patches(self, number: int, patches: list[GeneratedPatch]) -> None:
        """Hand generated patches to their slot, if it still generates."""
        slot = self._slots().get(number)
        if slot is None or slot.generation is None:
            return
        take = partial(self._take_audio, slot.generation.number)
        session = self.sessions[number]
        self._codec_results.extend(PendingCodecResult(session, p.audio, take) for p in patches if p.audio)
        self._guarded(number, slot.patches_generated, patches)

    def _take_audio(self, reply: int, slot: Slot, pcm: np.ndarray) -> None:
        slot.audio_decoded(reply, pcm, self.clock())

    def _deliver(self, wait: bool = False) -> None:
        """Hand on what the codec has computed; if `wait`, all that it was asked for."""
        while self._codec_results and (wait or self._codec_results[0].result.done()):
            pending = self._codec_results.popleft()
            if pending.session.slot is not None:
                self._guarded(pending.session.number, self._hand_on, pending, pending.session.slot)

    def _hand_on(self, pending: PendingCodecResult, slot: Slot) -> None:
        pending.take(slot, pending.result.result())

    def _slots(self) -> dict[int, Slot]:
        return {number: session.slot for number, session in self.sessions.items() if session.slot is not None}

    def _guarded(self, number: int, action: Callable[P, T], *args: P.args, **options: P.kwargs) -> T | None:
        """Do one slot's part of a step. If it fails, its reply or session ends, and the other slots go on."""
        session = self.sessions[number]
        try:
            return action(*args, **options)
        except UserError as error:
            assert session.slot is not None
            session.slot.generation = None
            self._report(session, error)
        except Exception:
            log.exception("a session failed in a step")
            self.fail(session)
        return None

    def _close_slot(self, session: Session) -> None:
        session.slot = None
        if self.sessions.get(session.number) is session:
            self.runner.wipe(session.number)
            del self.sessions[session.number]

    def _report(self, session: Session, error: UserError) -> None:
        """Tell a session what cannot be done. This ends the reply that it waits for."""
        ended = session.slot is None or session.slot.generation is None
        session.outbox.put(session.outbox.reply if ended else None, Error(str(error)))

    def fail(self, session: Session | None) -> None:
        """End a session after an internal error, which is logged."""
        if session is None:
            return
        session.outbox.put(session.outbox.reply, Error("the engine failed"))
        session.outbox.close()
        self._close_slot(session)
        self._release(session)

    def _count_step(self, seconds: float) -> None:
        self.steps += 1
        self.busy_seconds += seconds
        for observer in self.step_observers:
            observer(seconds)
