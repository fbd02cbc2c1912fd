"""How quickly does a server answer, how quickly does it fall silent, and how many can it talk with at once?

    sg2 bench realtime                       # serves the model itself, and doubles the callers until real time breaks
    sg2 bench realtime --url ws://host:8000  # or asks a server that runs already

Each caller is a websocket whose microphone is always open: questions are spoken in real time, with silence between
them; every second answer is interrupted. All times are taken at the client, in its own process:

    word → sound   last sample of the question's speech -> first byte of the answer's sound, the silence included
    turn → sound   the server says that the turn is over -> first byte of sound
    barge-in       first sample of the interruption -> last byte of the interrupted answer's sound
    step, late     the engine's steps: their mean, and how many take longer than the 120 ms of speech that they make
    gaps           chunks that came after a listener with 100 ms of cushion had run dry
    lost           questions without an answer
"""

from __future__ import annotations

import asyncio
import random
import re
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from speechgpt2.bench import process
from speechgpt2.bench.machine import warn_if_busy
from speechgpt2.bench.questions import load as load_questions
from speechgpt2.client import Listener, Talk, connect, sound
from speechgpt2.errors import UserError
from speechgpt2.eval import report
from speechgpt2.eval.report import column
from speechgpt2.types import SAMPLE_RATE

TITLE = "Callers at once; milliseconds (50, 95, 99 %)"
CUSHION = 0.1  # seconds that a listener holds before it plays
HEARD = 1.0  # seconds of an answer before it is interrupted
PATIENCE = 20.0  # seconds to wait for an answer
LOUD = 0.02  # of full scale: speech, in a recording's last block of 10 ms
STEP_BUDGET = 0.12  # seconds of speech that a step of the engine makes
BROKEN = 1.0  # seconds to the first sound (95 %) beyond which nobody calls it a conversation


@dataclass
class Measured:
    """What the callers saw, in seconds."""

    from_speech: list[float] = field(default_factory=list)
    from_turn: list[float] = field(default_factory=list)
    barge_in: list[float] = field(default_factory=list)
    underruns: int = 0
    unanswered: int = 0


@dataclass(frozen=True)
class Load:
    """So many callers at once. Triples are the 50th, 95th and 99th percentile, in milliseconds."""

    sessions: int = column("sessions")
    turns: int = column("turns")
    from_turn_ms: tuple[float, float, float] = column("turn → sound", ".0f")
    from_speech_ms: tuple[float, float, float] = column("word → sound", ".0f")
    barge_in_ms: tuple[float, float, float] = column("barge-in", ".0f")
    step_ms: float = column("step", ".0f")
    late_steps: float = column("late", ".0%")
    underruns: int = column("gaps")
    unanswered: int = column("lost")

    @property
    def in_real_time(self) -> bool:
        """Whether it still was a conversation for everyone."""
        return not (self.underruns or self.unanswered) and self.from_speech_ms[1] < 1000 * BROKEN


class Caller:
    """One person on the line, who asks `turns` questions."""

    def __init__(self, talk: Talk, questions: Sequence[np.ndarray], turns: int, rng: random.Random, result: Measured):
        self.talk, self.questions, self.turns, self.rng, self.result = talk, questions, turns, rng, result
        self.listener = Listener(CUSHION)
        self.first_sound, self.answered, self.answer_done = asyncio.Event(), 0.0, asyncio.Event()
        self.turn_over = self.last_sound = self.silent_from = 0.0
        self.response: str | None = None

    async def run(self) -> None:
        """Call, ask, interrupt, hang up."""
        ears = asyncio.create_task(self._listen())
        try:
            await self._silence(self.rng.uniform(0.2, 2.0))  # not everyone in step
            for turn in range(self.turns):
                await self._ask(self.rng.choice(self.questions), interrupted=turn % 2 == 1)
        finally:
            ears.cancel()
            self.result.underruns += self.listener.underruns

    async def _ask(self, question: np.ndarray, interrupted: bool) -> None:
        self.first_sound.clear()
        self.answer_done.clear()
        self.turn_over = 0.0
        speech, tail = split_at_end(question)
        said = await self.talk.speak(speech)
        if not await self._silence_until(self.first_sound, tail):
            self.result.unanswered += 1
            return
        self.result.from_speech.append(self.answered - said)
        self.result.from_turn.append(max(0.0, self.answered - self.turn_over))
        if interrupted:
            await self._silence(HEARD)
            await self._interrupt()
        else:
            await self._silence_until(self.answer_done)
            await self._silence(self.listener.left(now()) + 0.3)

    async def _interrupt(self) -> None:
        """Speak up, and see when the answer's sound stops coming."""
        if self.answer_done.is_set():
            return  # a short answer: there was nothing to interrupt
        began = now()
        speech, tail = split_at_end(self.questions[0])
        await self.talk.speak(speech[: SAMPLE_RATE // 2])
        if not await self._silence_until(self.answer_done):
            return
        self.result.barge_in.append(max(0.0, self.silent_from - began))
        if cut := self.listener.flush(now()):
            await self.talk.send("conversation.item.truncate", item_id=cut[0], content_index=0, audio_end_ms=cut[1])
        self.first_sound.clear()
        self.answer_done.clear()
        await self._silence_until(self.answer_done, tail)

    async def _silence(self, seconds: float) -> None:
        await self.talk.speak(np.zeros(int(seconds * SAMPLE_RATE), np.float32))

    async def _silence_until(self, event: asyncio.Event, tail: np.ndarray | None = None) -> bool:
        """Stay silent until `event`, or patience ends; the recording's own silent `tail` comes first."""
        end = now() + PATIENCE
        if tail is not None:
            await self.talk.speak(tail)
        while not event.is_set() and now() < end:
            await self._silence(0.04)
        return event.is_set()

    async def _listen(self) -> None:
        async for event in self.talk:
            kind = event["type"]
            if kind == "input_audio_buffer.speech_stopped":
                self.turn_over = now()
            elif kind == "response.created":
                self.response = event["response"]["id"]
                self.answer_done.clear()
            elif kind == "response.output_audio.delta":
                self._hear(event)
            elif kind == "response.output_audio.done":
                self.listener.complete(event["item_id"])
            elif kind == "response.done" and event["response"]["id"] == self.response:
                self.silent_from = self.last_sound
                self.answer_done.set()

    def _hear(self, event: dict[str, Any]) -> None:
        self.last_sound = now()
        self.listener.arrive(event["item_id"], len(sound(event)), self.last_sound)
        if not self.first_sound.is_set():
            self.answered = self.last_sound
            self.first_sound.set()


def now() -> float:
    """The running loop's clock, in seconds."""
    return asyncio.get_running_loop().time()


def split_at_end(recording: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A recording cut where its speech ends: the last block of 10 ms that is loud."""
    block = SAMPLE_RATE // 100
    blocks = np.abs(recording[: len(recording) // block * block]).reshape(-1, block).max(axis=1)
    loud = np.flatnonzero(blocks > LOUD * max(1e-9, float(blocks.max())) / 0.5)
    end = (int(loud[-1]) + 1) * block if len(loud) else len(recording)
    return recording[:end], recording[end:]


async def call(url: str, key: str | None, sessions: int, turns: int, questions: Sequence[np.ndarray]) -> Load:
    """So many callers at once, each with `turns` questions."""
    result = Measured()
    before = steps_of(url)

    async def one(number: int) -> None:
        async with connect(url, key) as talk:
            await Caller(talk, questions, turns, random.Random(f"{sessions}/{number}"), result).run()

    await asyncio.gather(*(one(number) for number in range(sessions)))
    steps = {name: value - before.get(name, 0.0) for name, value in steps_of(url).items()}
    count = steps.get("count", 0.0)
    return Load(
        sessions,
        sessions * turns,
        percentiles(result.from_turn),
        percentiles(result.from_speech),
        percentiles(result.barge_in),
        1000 * steps.get("sum", 0.0) / count if count else float("nan"),
        1 - steps.get("in_time", 0.0) / count if count else float("nan"),
        result.underruns,
        result.unanswered,
    )


def percentiles(seconds: list[float]) -> tuple[float, float, float]:
    """50th, 95th and 99th percentile in milliseconds."""
    if not seconds:
        return (float("nan"),) * 3
    low, high, highest = np.percentile(seconds, [50, 95, 99]) * 1000
    return float(low), float(high), float(highest)


def steps_of(url: str) -> dict[str, float]:
    """How many steps the engine has made, in how many seconds, and how many within the budget, by `/metrics`."""
    address = re.sub(r"^ws", "http", url).split("/v1/")[0].rstrip("/") + "/metrics"
    with urllib.request.urlopen(address, timeout=10) as answer:
        text = answer.read().decode()
    found = dict(re.findall(r"^sg2_step_seconds_(count|sum|bucket\{le=\"[\d.]+\"\}) ([\d.e+-]+)$", text, re.MULTILINE))
    in_time = found.get(f'bucket{{le="{STEP_BUDGET}"}}', 0)
    return {"count": float(found.get("count", 0)), "sum": float(found.get("sum", 0)), "in_time": float(in_time)}


def main(
    url: str | None = None,
    key: str | None = None,
    model: str = "mini",
    sessions: Sequence[int] = (1, 2, 4, 8, 16, 32),
    turns: int = 6,
    questions: Path | None = None,
    out: Path | None = None,
) -> list[Load]:
    """Measure each number of `sessions` until real time breaks; `out`: a JSON file, beside which a plot is put."""
    console = Console()
    warn_if_busy(console)
    recordings, rows = load_questions(questions), []
    with _served(model, max(sessions)) if url is None else _nothing(url) as address:
        asyncio.run(call(address, key, 1, 1, recordings))  # warms up
        for count in sessions:
            rows.append(asyncio.run(call(address, key, count, turns, recordings)))
            report.show(TITLE, rows[-1:], console)
            if not rows[-1].in_real_time:
                console.print(f"{count} sessions are more than this server does in real time")
                break
    report.show(TITLE, rows, console)
    if out is not None:
        report.save_json(out, callers=rows)
        plot(rows, out.with_suffix(".png"))
    return rows


@contextmanager
def _served(model: str, slots: int) -> Iterator[str]:
    with process.served(["--model", model, "--slots", str(slots)]) as server:
        yield server.url


@contextmanager
def _nothing(url: str) -> Iterator[str]:
    yield url


def plot(rows: list[Load], path: Path) -> None:
    """Latency over the number of callers: the median as a line, up to the 95th percentile as a band."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("the plot needs matplotlib: pip install 'speechgpt2[eval]'") from None
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    counts = [row.sessions for row in rows]
    for name, words in (
        ("from_speech_ms", "last word → first sound"),
        ("from_turn_ms", "end of turn → first sound"),
        ("barge_in_ms", "interruption → silence"),
    ):
        low, high, _ = zip(*(getattr(row, name) for row in rows))
        line = axes.plot(counts, low, marker="o", label=words)[0]
        axes.fill_between(counts, low, high, alpha=0.15, color=line.get_color())
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set(xlabel="callers at once", ylabel="milliseconds (median to 95 %)", ylim=(0, None))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
