"""The engine's core, on the engine's thread: executes commands and makes steps.

A step is schedule → run → deliver: the scheduler plans it, the model runner and the codec compute it for all slots
together, and each slot receives its results. An error in one session is reported to that session only.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple, ParamSpec, TypeVar

import numpy as np

from speechgpt2.codec.model import Codec
from speechgpt2.engine.commands import CloseSlot, Command, OpenSlot
from speechgpt2.engine.config import EngineConfig
from speechgpt2.engine.model_runner import CodecResult, GeneratedPatch, ModelRunner
from speechgpt2.engine.prefill import PrefillChunk
from speechgpt2.engine.prefix_cache import prefix_key
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
    """A part of a result of the codec that belongs to a session, and the method of the slot that receives it."""

    session: Session
    part: CodecResult
    receive: Callable[[Slot, np.ndarray], None]


class EngineCore:
    """The models, the sessions that have a slot, and the body of the engine's loop.

    Args:
        codec: The codec.
        lm: The language model.
        config: The engine's configuration.
        clock: Returns the time in seconds.
        release: Called with a failed session, to free its slot.
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
        self._codec_results: deque[PendingCodecResult] = deque()  # in the order of submission

    def execute(self, session: Session, command: Command | OpenSlot | CloseSlot) -> None:
        """Execute a session's command. Errors are reported to the session."""
        try:
            match command:
                case OpenSlot(settings, saved, writer):
                    shared = self._prompt, self.config, settings, self._codec_delay, session.event_queue
                    session.slot = Slot(session.slot_number, *shared, saved, writer)
                    self.sessions[session.slot_number] = session
                case CloseSlot():
                    self._close_slot(session)
                case _ if session.slot is not None:
                    session.backlog.remove(command)
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
            Seconds until the next step is due; None if only a new command can cause one.
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
            # While the codec works on audio that a user waits for, a step of the model would only slow it down.
            waits_for_codec = any(status.latency_critical for status in statuses) and not plan.urgent
            if self._codec_results and (waits_for_codec or not (plan.prefill or plan.sample)):
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
        """Submit the users' audio to the codec. Its codes are prefilled in a later step."""
        slots = self._slots()
        chunks = {n: chunk for n in plan.encode if (chunk := self._guarded(n, slots[n].next_audio_chunk)) is not None}
        for n, part in (self.runner.encode(chunks) if chunks else {}).items():
            receive = partial(Slot.audio_encoded, chunk=chunks[n])
            self._codec_results.append(PendingCodecResult(self.sessions[n], part, receive))

    def _run_model(self, plan: StepPlan) -> None:
        """Prefill and sample, all slots together. In between, deliver what the codec has finished."""
        for n, slot in self._slots().items():
            self.runner.states.positions[n] = slot.history.context.kv_length
        single = self._prefill_chunks(plan.prefill)
        slots = self._slots()  # without those that failed
        ready = [n for n in plan.sample if n in slots and n not in single]
        sample = {n: params for n in ready if (params := self._guarded(n, slots[n].sample_params)) is not None}
        for generated in self.runner.step(single, sample):
            for n, patches in generated.items():
                self._receive_patches(n, patches)
            self._deliver()

    def _prefill_chunks(self, numbers: Iterable[int]) -> dict[int, Patches]:
        """Prefill the next chunk of each slot, except chunks of one patch.

        Returns:
            The single patches `[1, 1]` by slot, which all slots read together with what they sample.
        """
        single: dict[int, Patches] = {}
        long: dict[int, PrefillChunk] = {}
        for number in numbers:
            slot = self._slots().get(number)  # None if it has failed meanwhile
            if slot is None or not slot.history.context.pending_patches:
                continue
            context = slot.history.context
            chunk = context.next_chunk()
            if chunk.text.shape[1] == 1:
                single[number] = chunk
            else:
                long[number] = PrefillChunk(chunk, prefix_key(context, context.kv_length))
        for _ in self.runner.prefiller.prefill(long):
            self._deliver()
        return single

    def _receive_patches(self, number: int, patches: list[GeneratedPatch]) -> None:
        """Pass generated patches to their slot, if it still generates."""
        slot = self._slots().get(number)
        if slot is None or slot.generation is None:
            return
        receive = partial(self._receive_audio, slot.generation.number)
        session = self.sessions[number]
        self._codec_results.extend(PendingCodecResult(session, p.audio, receive) for p in patches if p.audio)
        self._guarded(number, slot.patches_generated, patches)

    def _receive_audio(self, reply: int, slot: Slot, pcm: np.ndarray) -> None:
        slot.audio_decoded(reply, pcm, self.clock())

    def _deliver(self, wait: bool = False) -> None:
        """Pass finished results of the codec to their slots. With `wait`, wait for all that were submitted."""
        while self._codec_results and (wait or self._codec_results[0].part.done()):
            finished = self._codec_results.popleft()
            if finished.session.slot is not None:
                self._guarded(finished.session.slot_number, self._receive, finished, finished.session.slot)

    def _receive(self, finished: PendingCodecResult, slot: Slot) -> None:
        finished.receive(slot, finished.part.result())

    def _slots(self) -> dict[int, Slot]:
        return {number: session.slot for number, session in self.sessions.items() if session.slot is not None}

    def _guarded(self, number: int, action: Callable[P, T], *args: P.args, **options: P.kwargs) -> T | None:
        """Do one slot's part of a step. If it fails, its reply or session ends; the other slots are not affected."""
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
        if session.writer is not None:
            session.writer.close()
        session.slot = None
        if self.sessions.get(session.slot_number) is session:
            self.runner.wipe(session.slot_number)
            del self.sessions[session.slot_number]

    def _report(self, session: Session, error: UserError) -> None:
        """Send an error to a session. It ends the reply that the client waits for, unless the slot generates one."""
        ended = session.slot is None or session.slot.generation is None
        session.event_queue.put(session.event_queue.reply if ended else None, Error(str(error), refused=True))

    def fail(self, session: Session | None) -> None:
        """End a session after an internal error, which is logged."""
        if session is None:
            return
        session.event_queue.put(session.event_queue.reply, Error("the engine has failed and ends this session"))
        session.event_queue.close()
        self._close_slot(session)
        self._release(session)

    def _count_step(self, seconds: float) -> None:
        self.steps += 1
        self.busy_seconds += seconds
        for observer in self.step_observers:
            observer(seconds)
