"""Load test of latency: how quickly does a server respond and stop, and for how many sessions?

    sg2 bench realtime                       # serves the model itself; doubles the sessions until real time breaks
    sg2 bench realtime --url ws://host:8000  # tests a running server

Each session is a WebSocket with an open microphone: it speaks questions in real time, with silence between them, and
interrupts every second response. The client measures all times, in its own process:

    speech → audio   last sample of the question's speech to the first byte of the response's audio
    turn → audio     the server's speech_stopped event to the first byte of audio
    barge-in         first sample of the interruption to the last byte of the interrupted response's audio
    step, late       the engine's steps: mean duration, and the share above the 120 ms of speech that they make
    underruns        audio deltas that came after a client with a buffer of 100 ms had run dry
    unanswered       questions without a response
"""

from __future__ import annotations

import asyncio
import random
import re
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from speechgpt2.bench import process
from speechgpt2.bench.machine import open_console
from speechgpt2.bench.questions import load as load_questions
from speechgpt2.client import PlaybackTracker, RealtimeConnection, connect, decode_audio
from speechgpt2.errors import UserError
from speechgpt2.eval import report
from speechgpt2.eval.report import column
from speechgpt2.types import PATCH_SECONDS, SAMPLE_RATE

TurnDetection = Literal["server_vad", "semantic_vad"]

TITLE = "Concurrent sessions; milliseconds (50, 95, 99 %)"
CLIENT_BUFFER = 0.1  # seconds of audio that a client holds before it plays
INTERRUPT_AFTER = 1.0  # seconds of a response
RESPONSE_TIMEOUT = 20.0  # seconds
SPEECH_LEVEL = 0.02  # of full scale, of a block of 10 ms
MAX_LATENCY = 1.0  # seconds from speech to audio (95 %) beyond which it is not a conversation


@dataclass
class Latencies:
    """What the sessions measure, in seconds."""

    from_speech: list[float] = field(default_factory=list)
    from_turn: list[float] = field(default_factory=list)
    barge_in: list[float] = field(default_factory=list)
    underruns: int = 0
    unanswered: int = 0


@dataclass(frozen=True)
class LoadResult:
    """Results for one number of sessions. Triples are the 50th, 95th and 99th percentile, in milliseconds."""

    sessions: int = column("sessions")
    turns: int = column("turns")
    from_turn_ms: tuple[float, float, float] = column("turn → audio", ".0f")
    from_speech_ms: tuple[float, float, float] = column("speech → audio", ".0f")
    barge_in_ms: tuple[float, float, float] = column("barge-in", ".0f")
    step_ms: float = column("step", ".0f")
    late_steps: float = column("late", ".0%")
    underruns: int = column("underruns")
    unanswered: int = column("unanswered")

    @property
    def in_real_time(self) -> bool:
        """Whether all sessions were answered in real time."""
        return not (self.underruns or self.unanswered) and self.from_speech_ms[1] < 1000 * MAX_LATENCY


class VirtualUser:
    """A user who asks questions in one session.

    Args:
        connection: The session.
        questions: Recordings to choose from, `[N]` each.
        turns: Number of questions.
        rng: Makes the choices.
        result: Collects the latencies.
    """

    def __init__(
        self,
        connection: RealtimeConnection,
        questions: Sequence[np.ndarray],
        turns: int,
        rng: random.Random,
        result: Latencies,
    ):
        self.connection, self.questions, self.turns, self.rng, self.result = connection, questions, turns, rng, result
        self.playback = PlaybackTracker(CLIENT_BUFFER)
        self.response_id: str | None = None
        self.audio_started, self.response_done = asyncio.Event(), asyncio.Event()
        self.first_audio_at = self.last_audio_at = self.turn_ended_at = self.silent_since = 0.0

    async def run(self) -> None:
        """Ask all questions; interrupt every second response."""
        following = asyncio.create_task(self._follow())
        try:
            await self._stay_silent(self.rng.uniform(0.2, 2.0))  # so that the users are not in step
            for turn in range(self.turns):
                await self._ask(self.rng.choice(self.questions), interrupt=turn % 2 == 1)
        finally:
            following.cancel()
            self.result.underruns += self.playback.underruns

    async def _ask(self, question: np.ndarray, interrupt: bool) -> None:
        self.audio_started.clear()
        self.response_done.clear()
        self.turn_ended_at = 0.0
        speech, silence = split_at_speech_end(question)
        speech_ended_at = await self.connection.stream_audio(speech)
        if not await self._stay_silent_until(self.audio_started, silence):
            self.result.unanswered += 1
            return
        self.result.from_speech.append(self.first_audio_at - speech_ended_at)
        self.result.from_turn.append(max(0.0, self.first_audio_at - self.turn_ended_at))
        if interrupt:
            await self._stay_silent(INTERRUPT_AFTER)
            await self._interrupt()
        else:
            await self._stay_silent_until(self.response_done)
            await self._stay_silent(self.playback.remaining_seconds(now()) + 0.3)

    async def _interrupt(self) -> None:
        """Speak during a response, and measure when its audio stops."""
        if self.response_done.is_set():
            return  # the response was shorter than `INTERRUPT_AFTER`
        began = now()
        speech, silence = split_at_speech_end(self.questions[0])
        await self.connection.stream_audio(speech[: SAMPLE_RATE // 2])
        if not await self._stay_silent_until(self.response_done):
            return
        self.result.barge_in.append(max(0.0, self.silent_since - began))
        if cut := self.playback.interrupt(now()):
            item_id, played = cut
            await self.connection.send(
                "conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=played
            )
        self.audio_started.clear()
        self.response_done.clear()
        await self._stay_silent_until(self.response_done, silence)

    async def _stay_silent(self, seconds: float) -> None:
        await self.connection.stream_audio(np.zeros(int(seconds * SAMPLE_RATE), np.float32))

    async def _stay_silent_until(self, event: asyncio.Event, recording: np.ndarray | None = None) -> bool:
        """Stream a silent recording, then silence, until `event` is set or the timeout; returns whether it is set."""
        end = now() + RESPONSE_TIMEOUT
        if recording is not None:
            await self.connection.stream_audio(recording)
        while not event.is_set() and now() < end:
            await self._stay_silent(0.04)
        return event.is_set()

    async def _follow(self) -> None:
        """Note the times of the server's events."""
        async for event in self.connection:
            kind = event["type"]
            if kind == "input_audio_buffer.speech_stopped":
                self.turn_ended_at = now()
            elif kind == "response.created":
                self.response_id = event["response"]["id"]
                self.response_done.clear()
            elif kind == "response.output_audio.delta":
                self._add_audio(event)
            elif kind == "response.output_audio.done":
                self.playback.mark_complete(event["item_id"])
            elif kind == "response.done" and event["response"]["id"] == self.response_id:
                self.silent_since = self.last_audio_at
                self.response_done.set()

    def _add_audio(self, event: dict[str, Any]) -> None:
        self.last_audio_at = now()
        self.playback.add_audio(event["item_id"], len(decode_audio(event)), self.last_audio_at)
        if self.turn_ended_at and not self.audio_started.is_set():  # earlier, it belongs to the response before
            self.first_audio_at = self.last_audio_at
            self.audio_started.set()


def now() -> float:
    """Return the running event loop's time in seconds."""
    return asyncio.get_running_loop().time()


def split_at_speech_end(recording: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split a recording after its last loud block of 10 ms."""
    block = SAMPLE_RATE // 100
    peaks = np.abs(recording[: len(recording) // block * block]).reshape(-1, block).max(axis=1)
    loud = np.flatnonzero(peaks > SPEECH_LEVEL * max(1e-9, float(peaks.max())) / 0.5)
    end = (int(loud[-1]) + 1) * block if len(loud) else len(recording)
    return recording[:end], recording[end:]


async def run_load(
    url: str,
    key: str | None,
    sessions: int,
    turns: int,
    questions: Sequence[np.ndarray],
    turn_detection: TurnDetection = "server_vad",
) -> LoadResult:
    """Run `sessions` at the same time, with `turns` questions each."""
    result, settings = Latencies(), {"audio": {"input": {"turn_detection": {"type": turn_detection}}}}
    before = read_steps(url)

    async def run_session(number: int) -> None:
        async with connect(url, key, session=settings) as connection:
            await VirtualUser(connection, questions, turns, random.Random(f"{sessions}/{number}"), result).run()

    await asyncio.gather(*(run_session(number) for number in range(sessions)))
    steps = {name: value - before.get(name, 0.0) for name, value in read_steps(url).items()}
    count = steps.get("count", 0.0)
    return LoadResult(
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
    """Return the 50th, 95th and 99th percentile in milliseconds."""
    if not seconds:
        return (float("nan"),) * 3
    low, high, highest = np.percentile(seconds, [50, 95, 99]) * 1000
    return float(low), float(high), float(highest)


def read_steps(url: str) -> dict[str, float]:
    """Read `/metrics`: the engine's steps (count), their duration (sum), and those within the budget (in_time)."""
    address = re.sub(r"^ws", "http", url).split("/v1/")[0].rstrip("/") + "/metrics"
    with urllib.request.urlopen(address, timeout=10) as response:
        text = response.read().decode()
    metric = r"^sg2_step_duration_seconds_(count|sum|bucket\{le=\"[\d.]+\"\}) ([\d.e+-]+)$"
    found = dict(re.findall(metric, text, re.MULTILINE))
    in_time = found.get(f'bucket{{le="{PATCH_SECONDS}"}}', 0)
    return {"count": float(found.get("count", 0)), "sum": float(found.get("sum", 0)), "in_time": float(in_time)}


def main(
    url: str | None = None,
    key: str | None = None,
    model: str = "mini",
    sessions: Sequence[int] = (1, 2, 4, 8, 16, 32),
    turns: int = 6,
    questions: Path | None = None,
    out: Path | None = None,
    device: str = "auto",
    turn_detection: TurnDetection = "server_vad",
) -> list[LoadResult]:
    """Test each number of sessions until real time breaks; print a line for each on stderr, and the table at the end.

    Args:
        url: A running server; None starts one.
        key: Its API key.
        model: The model to serve.
        sessions: Numbers of concurrent sessions.
        turns: Questions per session.
        questions: A folder of recorded questions.
        out: A JSON file for the results; a plot is saved beside it.
        device: Where the server that is started computes.
        turn_detection: How the server finds the end of a turn.
    """
    console = open_console()
    recordings, rows = load_questions(questions), []
    with _server(url, model, max(sessions), device) as address:
        asyncio.run(run_load(address, key, 1, 1, recordings))  # warm-up
        for count in sessions:
            row = asyncio.run(run_load(address, key, count, turns, recordings, turn_detection))
            rows.append(row)
            median = f"{row.from_speech_ms[0]:.0f} ms from the last word to the first audio"
            print(f"sessions {count}: {median}", file=sys.stderr, flush=True)
            if not row.in_real_time:
                print(f"{count} sessions are more than this server can serve in real time", file=sys.stderr)
                break
    report.show(TITLE, rows, console)
    if out is not None:
        report.save_json(out, sessions=rows)
        plot(rows, out.with_suffix(".png"))
    return rows


@contextmanager
def _server(url: str | None, model: str, slots: int, device: str) -> Iterator[str]:
    """Yield the URL of the server to test; start one if there is none."""
    if url is not None:
        yield url
        return
    with process.serve(["--model", model, "--slots", str(slots), "--device", device]) as server:
        yield server.url


def plot(rows: list[LoadResult], path: Path) -> None:
    """Plot latency over the number of sessions: the median as a line, the 95th percentile as the band's upper edge.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("the plot needs matplotlib: pip install 'speechgpt2[eval]'") from None
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    counts = [row.sessions for row in rows]
    for name, label in (
        ("from_speech_ms", "end of speech → first audio"),
        ("from_turn_ms", "end of turn → first audio"),
        ("barge_in_ms", "interruption → silence"),
    ):
        low, high, _ = zip(*(getattr(row, name) for row in rows))
        line = axes.plot(counts, low, marker="o", label=label)[0]
        axes.fill_between(counts, low, high, alpha=0.15, color=line.get_color())
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set(xlabel="concurrent sessions", ylabel="milliseconds (median to 95 %)", ylim=(0, None))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
