"""The engine on a device: steps, first audio, memory. One engine of so many sessions, without a server.

The engine's own thread is not started: steps are made here one after the other, and events are read between them, so
times are those of steps and not of threads that wait for each other.
"""

from __future__ import annotations

import gc
import logging
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from speechgpt2.bench.device_models import UNLIMITED, BenchModel, make_model, plan_model, product_count
from speechgpt2.bench.lm import bytes_read
from speechgpt2.bench.machine import percentiles, synchronize
from speechgpt2.bench.questions import load as load_questions
from speechgpt2.duplex.protocol import SessionSettings
from speechgpt2.engine.config import EngineConfig
from speechgpt2.engine.engine import Engine
from speechgpt2.engine.session import Session
from speechgpt2.errors import UserError
from speechgpt2.eval.report import column
from speechgpt2.types import PATCH_SECONDS, SAMPLE_RATE, AudioDelta, Error, Event, Turn

Tables = Iterator[tuple[str, list[Any]]]  # titles with rows

STEPS_TITLE, FIRST_TITLE, MEMORY_TITLE = "Steps of the engine", "First audio", "Start and memory"
WARM_UP = 5  # steps
IDLE_STEPS = 100_000  # most steps until an engine has nothing left to do
PIECE = SAMPLE_RATE // 20  # samples of the microphone that come together
WAIT = 0.001  # seconds, the longest that the driver sleeps at once
REPLY_TIMEOUT = 30.0  # seconds after which a reply without audio counts as lost
LEAST_STEPS = 3  # of a measurement that is cut short
GB = 1e9


@dataclass(frozen=True)
class StepRow:
    """Steps of all sessions of an engine.

    Attributes:
        median_ms: Median time of a step of the language model, while the codec works beside it.
        p95_ms: Its 95th percentile.
        patch_ms: Wall time for a patch of every session: the step, the codec, the delivery of events.
        rtf: `patch_ms` ÷ 120 ms; nan for text.
        gigabytes: Weights and filled cache that a step of the language model reads.
        filled: Patches in the cache of each session, about half-way.
        bandwidth_share: Those bytes ÷ median time ÷ measured bandwidth.
        product_share: Operations of its products ÷ median time ÷ measured rate of products in bfloat16.
    """

    sessions: int = column("sessions", "d")
    weights: str = column("weights")
    step: str = column("step")
    steps: int = column("steps", "d")
    filled: int = column("patches in each cache", "d")
    median_ms: float = column("ms, median", ".2f")
    p95_ms: float = column("95 %", ".2f")
    patch_ms: float = column("ms a patch, with codec", ".2f")
    rtf: float = column("RTF", ".3f")
    gigabytes: float = column("GB read", ".2f")
    bandwidth_share: float = column("of bandwidth", ".0%")
    product_share: float = column("of products", ".1%")


@dataclass(frozen=True)
class FirstAudioRow:
    """From the end of a user's audio to the first audio of the reply, in milliseconds, without network or silence."""

    sessions: int = column("sessions", "d")
    others: str = column("the others")
    turns: int = column("turns", "d")
    median_ms: float = column("ms, median", ".0f")
    most_ms: float = column("longest", ".0f")
    late_steps: float = column("steps over 120 ms", ".0%")


@dataclass(frozen=True)
class MemoryRow:
    """What an engine takes.

    Attributes:
        weights_seconds: Time in which the weights were made or loaded.
        engine_seconds: Time in which the engine was built; on CUDA its steps are captured.
        prompt_seconds: Time in which all sessions prefilled their prompts.
        plan_gb: What `loading.MemoryPlan` says.
        peak_gb: The most that tensors took; on a CPU, what the process held.
        device_gb: What was taken on the device in the end, by this process and others; nan on a CPU.
    """

    sessions: int = column("sessions", "d")
    weights: str = column("weights")
    weights_seconds: float = column("weights, s", ".1f")
    engine_seconds: float = column("engine, s", ".1f")
    prompt_seconds: float = column("prompts, s", ".1f")
    plan_gb: float = column("GB planned", ".2f")
    peak_gb: float = column("peak", ".2f")
    device_gb: float = column("of the device", ".2f")


@dataclass(frozen=True)
class EngineTest:
    """What is measured.

    Attributes:
        model: Sizes of random weights, or a model (`device_models.plan_model`).
        codec: The codec, if it is not in the model's folder.
        device: Where it runs.
        sessions: Sessions of the engine.
        weights: Precision of the language model, if it is random or quantized.
        context: Patches that each session remembers.
        prompt: Tokens of the instructions, which fill the cache.
        steps: Steps of each kind.
        turns: Spoken turns; 0 leaves them out.
        question_seconds: Length of a spoken turn.
        seconds: Time for all measurements; what is not measured by then is cut short.
        bandwidth: Measured bytes per second of the device; nan if unknown.
        products: Measured operations per second in bfloat16; nan if unknown.
    """

    model: str
    codec: str | None
    device: str
    sessions: int
    weights: str
    context: int
    prompt: int
    steps: int
    turns: int
    question_seconds: float
    seconds: float
    bandwidth: float
    products: float


class FailureLog(logging.Handler):
    """Keeps the last exception that the engine has logged: it goes on after a failure, and tells sessions nothing."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.error: BaseException | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Remember the exception of a record."""
        if record.exc_info is not None and record.exc_info[1] is not None:
            self.error = record.exc_info[1]


class Measured(NamedTuple):
    """Seconds of each step of the language model, and of the whole measurement."""

    steps: list[float]
    wall: float


class EngineDriver:
    """An engine whose steps are made here, with sessions that read their events at once.

    Args:
        model: The models.
        test: The engine's sizes.
        deadline: Time of `time.monotonic` after which a measurement is cut short.

    Raises:
        RuntimeError: From a method, when the engine has failed; with the reason.
    """

    def __init__(self, model: BenchModel, test: EngineTest, deadline: float):
        self.test, self.deadline, self.failures = test, deadline, FailureLog()
        logging.getLogger("sg2.engine").addHandler(self.failures)
        self.engine = Engine(model.codec, model.lm, EngineConfig(slots=test.sessions, context=test.context))
        self.instructions = _instructions(test, model)
        self.step_seconds: list[float] = []
        self.engine.add_step_observer(self.step_seconds.append)
        self.sessions: list[Session] = []
        self.audible: set[int] = set()  # sessions from which audio has come since they were asked

    def close(self) -> None:
        """Close the engine."""
        self.engine.close()
        logging.getLogger("sg2.engine").removeHandler(self.failures)

    def open(self) -> None:
        """Open all sessions, and prefill their instructions."""
        self.sessions = [self.engine.open(self._settings(n, False, False)) for n in range(self.test.sessions)]
        self.rest()

    def configure(self, speak: bool, paced: bool) -> None:
        """Choose for all sessions whether they speak, and whether they wait for their audio to be played."""
        for number, session in enumerate(self.sessions):
            session.configure(self._settings(number, speak, paced))

    def _settings(self, number: int, speak: bool, paced: bool) -> SessionSettings:
        seed = 2 * number + (not speak)  # see `SteadyLM`
        return SessionSettings(
            speak=speak, instructions=self.instructions, seed=seed, max_patches=UNLIMITED, paced=paced
        )

    def pump(self) -> float | None:
        """Make one step if it is due, and read all events; returns what `Engine.step` does."""
        wait = self.engine.step()
        for number, session in enumerate(self.sessions):
            for event in self.read(session):
                if isinstance(event, AudioDelta):
                    self.audible.add(number)
        return wait

    def read(self, session: Session) -> Iterator[Event]:
        """Yield the session's events. Raises `RuntimeError` if one says that the engine has failed."""
        while (event := session.event_queue.get()) is not None:
            if isinstance(event, Error):
                error = self.failures.error
                reason = "no reason is known" if error is None else f"{type(error).__name__}: {error}"
                raise RuntimeError(f"{event.message} ({reason})") from error
            yield event

    def rest(self) -> None:
        """Step until there is nothing to do."""
        for _ in range(IDLE_STEPS):
            if self.pump() is None:
                return
        raise RuntimeError("the engine does not come to rest")

    def interrupt(self, sessions: Sequence[Session]) -> None:
        """End the replies of sessions, and rewind their rows."""
        for session in sessions:
            if session.replying:
                session.interrupt(0)
        self.rest()

    def ask(self, sessions: Sequence[Session]) -> None:
        """Give sessions a typed turn, and begin their replies once all have read it."""
        for session in sessions:
            session.add_turn(Turn.user(text="Hello"))
        self.rest()
        for session in sessions:
            session.respond()

    def keep_replying(self, sessions: Sequence[Session]) -> None:
        """Let sessions begin another reply when theirs is over, which a real model's is after some words."""
        for session in sessions:
            if not session.replying:
                session.add_turn(Turn.user(text="Hello"))
                session.respond()

    def measure_steps(self, speak: bool) -> Measured:
        """Time steps in which all sessions write, or speak."""
        self.configure(speak, paced=False)
        self.audible.clear()
        self.ask(self.sessions)
        self._until(lambda: len(self.audible) == len(self.sessions) or not speak)
        self._count(WARM_UP, lambda: False)
        synchronize(self.test.device)
        began, first = time.perf_counter(), len(self.step_seconds)
        self._count(self.test.steps, lambda: time.monotonic() > self.deadline)
        wall = time.perf_counter() - began
        measured = self.step_seconds[first:]
        self.interrupt(self.sessions)
        return Measured(measured, wall)

    def _count(self, steps: int, is_over: Callable[[], bool]) -> None:
        first = len(self.step_seconds)
        while (count := len(self.step_seconds) - first) < steps and not (count >= LEAST_STEPS and is_over()):
            self.pump()
            self.keep_replying(self.sessions)

    def _until(self, done: Callable[[], bool]) -> None:
        end = time.monotonic() + REPLY_TIMEOUT
        while not done():
            if time.monotonic() > max(end, self.deadline):
                raise RuntimeError(f"no audio within {REPLY_TIMEOUT:.0f} s")
            self.pump()
            self.keep_replying(self.sessions)

    def measure_first_audio(self, question: np.ndarray) -> tuple[list[float], float]:
        """Time spoken turns of the first session in real time, while all others speak.

        Args:
            question: The turn, `[N]` at 24 kHz.

        Returns:
            Seconds from the end of each turn to its first audio, and the share of steps that took longer than a patch.
        """
        user, others = self.sessions[0], self.sessions[1:]
        self.configure(speak=True, paced=True)
        self.audible.clear()
        self.ask(others)
        self._wait(lambda: len(self.audible) == len(others), others)
        first, waited = len(self.step_seconds), []
        for turn in range(self.test.turns + 1):
            if turn > 1 and time.monotonic() > self.deadline:
                break
            waited.append(self._first_audio(user, others, question))
        seconds = self.step_seconds[first:]
        late = sum(step > PATCH_SECONDS for step in seconds) / max(1, len(seconds))
        return waited[1:], late

    def _first_audio(self, user: Session, others: Sequence[Session], question: np.ndarray) -> float:
        user.start_turn()
        began = time.monotonic()
        for start in range(0, len(question), PIECE):
            piece = question[start : start + PIECE]
            due = began + (start + len(piece)) / SAMPLE_RATE  # a microphone gives a piece when it is complete
            self._wait(lambda due=due: time.monotonic() >= due, others)  # type: ignore[misc]
            user.append_audio(piece)
        ended = time.monotonic()
        user.end_turn()
        user.respond()
        self.audible.discard(0)
        self._wait(lambda: 0 in self.audible, others)
        waited = time.monotonic() - ended
        user.interrupt(0)
        return waited

    def _wait(self, done: Callable[[], bool], others: Sequence[Session]) -> None:
        """Make the steps that are due until `done()`, at the pace of a clock."""
        began = time.monotonic()
        while not done():
            if (now := time.monotonic()) > min(self.deadline, began + REPLY_TIMEOUT):
                raise RuntimeError(f"no audio within {now - began:.0f} s")
            wait = self.pump()
            self.keep_replying(others)
            if wait is None or wait > 0:
                time.sleep(min(WAIT, wait or WAIT))


def run(test: EngineTest) -> Tables:
    """Measure an engine; yields each table's rows as soon as they are there.

    Raises:
        UserError: The sessions do not fit by the plan, or the model cannot be loaded.
        RuntimeError: The engine has failed.
    """
    device = torch.device(test.device)
    deadline = time.monotonic() + test.seconds
    planned = plan_model(test.model, test.codec, device, test.weights)
    check_fits(test, planned.total(test.sessions, test.context), planned.free)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    model = make_model(test.model, test.codec, device, test.weights)
    began = time.perf_counter()
    driver = EngineDriver(model, test, deadline)
    with closing(driver):
        synchronize(test.device)
        engine_seconds, began = time.perf_counter() - began, time.perf_counter()
        driver.open()
        synchronize(test.device)
        prompt_seconds = time.perf_counter() - began
        for spoken in (False, True):
            yield STEPS_TITLE, [_step_row(driver, model, spoken)]
        yield MEMORY_TITLE, [_memory_row(test, model, engine_seconds, prompt_seconds)]
        if test.turns:
            yield FIRST_TITLE, [_first_row(driver)]
    del driver, model
    gc.collect()


def check_fits(test: EngineTest, needed: int, free: int | None) -> None:
    """Raise `UserError` if an engine of this size needs more than the device's free bytes."""
    if free is not None and needed > free:
        raise UserError(
            f"{test.sessions} sessions of {test.context} patches need {needed / GB:.1f} GB on {test.device}, "
            f"where {free / GB:.1f} GB are free"
        )


def _step_row(driver: EngineDriver, model: BenchModel, spoken: bool) -> StepRow:
    test, lm = driver.test, model.lm
    filled = _filled(test, model) + test.steps // 2 + spoken * (test.steps + WARM_UP)  # what was written stays
    measured = driver.measure_steps(spoken)
    median, high = percentiles(measured.steps)
    size = bytes_read(lm, spoken) + test.sessions * filled * model.plan.patch
    operations = test.sessions * product_count(lm.config, filled, spoken)
    patch_ms = 1000 * measured.wall / len(measured.steps)
    return StepRow(
        sessions=test.sessions,
        weights=model.weights,
        step="spoken" if spoken else "written",
        steps=len(measured.steps),
        filled=filled,
        median_ms=median,
        p95_ms=high,
        patch_ms=patch_ms,
        rtf=patch_ms / (1000 * PATCH_SECONDS) if spoken else float("nan"),
        gigabytes=size / GB,
        bandwidth_share=size / (median / 1000) / test.bandwidth,
        product_share=operations / (median / 1000) / test.products,
    )


def _filled(test: EngineTest, model: BenchModel) -> int:
    """Return about how many patches a row holds before the first step."""
    prompt = model.lm.prompt
    system = prompt.system_prompt("t2s", prompt.opening(None, "t2s"), _instructions(test, model))
    return min(system.text.shape[1] + prompt.user_text("Hello").text.shape[1], test.context)


def _instructions(test: EngineTest, model: BenchModel) -> str:
    """Return a text of about as many tokens as `test` asks for."""
    return " ".join(["word"] * max(1, test.prompt // max(1, len(model.lm.prompt.encode(" word")))))


def _memory_row(test: EngineTest, model: BenchModel, engine_seconds: float, prompt_seconds: float) -> MemoryRow:
    device, taken = torch.device(test.device), float("nan")
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        free, total = torch.cuda.mem_get_info(device)
        taken = (total - free) / GB
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    planned = model.plan.total(test.sessions, test.context)
    times = model.seconds, engine_seconds, prompt_seconds
    return MemoryRow(test.sessions, model.weights, *times, planned / GB, peak / GB, taken)


def _first_row(driver: EngineDriver) -> FirstAudioRow:
    test = driver.test
    question = load_questions()[0][: int(test.question_seconds * SAMPLE_RATE)]
    waited, late = driver.measure_first_audio(question)
    others = "speak" if test.sessions > 1 else "–"
    median = 1000 * float(np.median(waited))
    return FirstAudioRow(test.sessions, others, len(waited), median, 1000 * max(waited), late)
