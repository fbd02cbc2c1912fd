"""`sg2 talk`: a terminal client of a server, with recordings, typed turns or a microphone."""

from __future__ import annotations

import asyncio
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from speechgpt2.cli.audio_devices import QueuePlayer, open_stream, sounddevice
from speechgpt2.cli.persona_options import SessionSpeed, StyleNames
from speechgpt2.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from speechgpt2.client import RealtimeConnection

PAUSE = 0.3  # seconds of silence between an answer and the next question
ANSWER_TIMEOUT = 30.0  # seconds until an answer must have started


def talk(
    audio_files: Annotated[
        list[Path] | None, typer.Argument(help="Spoken turns, one per file.", metavar="AUDIO...")
    ] = None,
    texts: Annotated[
        list[str] | None, typer.Option("--text", "-t", help="A typed turn (repeatable).", metavar="TEXT")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="A .wav or .flac file for the answers as far as played.", metavar="FILE"),
    ] = None,
    url: Annotated[str, typer.Option(help="URL of the server.", metavar="URL")] = "ws://127.0.0.1:8000",
    key: Annotated[str | None, typer.Option(help="API key of the server.", envvar="SG2_API_KEY", metavar="KEY")] = None,
    voice: Annotated[str | None, typer.Option(help="One of the server's voices.", metavar="VOICE")] = None,
    speed: SessionSpeed = None,
    style: StyleNames = None,
    instructions: Annotated[str | None, typer.Option(help="Instructions for the assistant.", metavar="TEXT")] = None,
    resume: Annotated[
        str | None, typer.Option(help="Resume this session, which the server has saved.", metavar="ID")
    ] = None,
    interrupt: Annotated[
        float | None,
        typer.Option(min=0.1, help="Interrupt each answer with the next AUDIO after this time.", metavar="SECONDS"),
    ] = None,
    mic: Annotated[bool, typer.Option("--mic", help="Talk through the microphone; Ctrl-C ends the session.")] = False,
    play: Annotated[bool, typer.Option("--play", help="Play the answers.")] = False,
) -> None:
    """Talk to a server (`sg2 serve`) in real time; answers can be interrupted."""
    from speechgpt2 import audio, hub

    if not (audio_files or texts or mic):
        raise UserError("nothing to say: give an audio file, --text or --mic")
    if out is not None:
        audio.check_format(out)
        hub.check_writable(out)
    if mic or play:
        sounddevice()
    turns: list[Any] = [audio.load(path) for path in audio_files or []] + list(texts or [])
    output = {"voice": voice, "speed": speed, "style": style}
    chosen = {key: value for key, value in output.items() if value is not None}
    session: dict[str, Any] = {"audio": {"output": chosen}} if chosen else {}
    if instructions:
        session["instructions"] = instructions
    with ExitStack() as stack:
        view = SessionView(stack.enter_context(QueuePlayer()) if play else None)
        asyncio.run(_run_session(url, key, session, turns, interrupt, mic, view, resume))
    if out is not None:
        save(out, view.answers)


class SessionView:
    """Prints a session's transcripts, plays its audio, and keeps the answers as far as they were played.

    Args:
        player: plays the audio; None for a silent session.

    Attributes:
        answers: item id -> chunks of `pcm [N]`.
        responses: number of responses so far.
        started: set once the latest response has output.
        done: set once the latest response is complete.
    """

    def __init__(self, player: QueuePlayer | None):
        from speechgpt2.client import PlaybackTracker

        self.playback = PlaybackTracker()
        self.player = player
        self.answers: dict[str, list[np.ndarray]] = {}
        self.responses = 0
        self.started, self.done = asyncio.Event(), asyncio.Event()
        self._line: str | None = None  # the role whose words are on the unfinished line

    async def follow(self, session: RealtimeConnection) -> None:
        """Handle the session's events until it ends."""
        async for event in session:
            await self._handle(session, event)

    async def _handle(self, session: RealtimeConnection, event: dict[str, Any]) -> None:
        kind = event["type"]
        if kind == "response.output_audio.delta":
            self._play(event)
        elif kind in ("response.output_audio_transcript.delta", "response.output_text.delta"):
            self._print("sg2", event["delta"])
            self.started.set()
        elif kind == "conversation.item.input_audio_transcription.completed":
            self._print("you", event["transcript"].strip())
        elif kind == "input_audio_buffer.speech_started":
            await self.truncate(session)
        elif kind == "response.output_audio.done":
            self.playback.mark_complete(event["item_id"])
        elif kind == "response.created":
            self.responses += 1
            self.started.clear()
            self.done.clear()
        elif kind == "response.done":
            self._end_line()
            self.done.set()
            self.started.set()
        elif kind == "error":
            self._end_line()
            print("server:", event["error"]["message"], file=sys.stderr)

    async def truncate(self, session: RealtimeConnection) -> None:
        """Stop playback and tell the server how much of the answer was played."""
        cut = self.playback.interrupt(asyncio.get_running_loop().time())
        if cut is None:
            return
        item, milliseconds = cut
        if self.player is not None:
            self.player.flush()
        self._end_line()
        print(f"[interrupted after {milliseconds / 1000:.1f} s]", flush=True)
        self.answers[item] = cut_to(self.answers[item], milliseconds)
        await session.send("conversation.item.truncate", item_id=item, content_index=0, audio_end_ms=milliseconds)

    def _play(self, event: dict[str, Any]) -> None:
        from speechgpt2.client import decode_audio

        pcm, now = decode_audio(event), asyncio.get_running_loop().time()
        self.playback.add_audio(event["item_id"], len(pcm), now)
        self.answers.setdefault(event["item_id"], []).append(pcm)
        self.started.set()
        if self.player is not None:
            self.player.play(pcm)

    def _print(self, role: str, words: str) -> None:
        if self._line != role:
            self._end_line()
            print(f"{role}: ", end="")
            words = words.lstrip()
        print(words, end="", flush=True)
        self._line = role

    def _end_line(self) -> None:
        if self._line is not None:
            print(flush=True)
        self._line = None


def cut_to(chunks: list[np.ndarray], milliseconds: int) -> list[np.ndarray]:
    """Keep the first milliseconds of audio in chunks."""
    import numpy as np

    from speechgpt2.types import SAMPLE_RATE

    return [np.concatenate(chunks)[: milliseconds * SAMPLE_RATE // 1000]]


async def _run_session(
    url: str,
    key: str | None,
    settings: dict[str, Any],
    turns: list[Any],
    interrupt: float | None,
    mic: bool,
    view: SessionView,
    resume: str | None = None,
) -> None:
    from speechgpt2.client import connect

    settings.setdefault("audio", {}).setdefault("input", {})["transcription"] = {"model": "own"}
    async with connect(url, key, session=settings, session_id=resume) as session:
        output = asyncio.create_task(view.follow(session))
        source = _send_microphone(session) if mic else _send_turns(session, turns, interrupt, view)
        tasks = {output, asyncio.create_task(source)}
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        for task in done:
            task.result()


async def _send_turns(
    session: RealtimeConnection, turns: list[Any], interrupt: float | None, view: SessionView
) -> None:
    """Send the turns in real time, each after the answer to the one before, or `interrupt` seconds into it."""
    import numpy as np

    from speechgpt2.types import SAMPLE_RATE

    silence = np.zeros(SAMPLE_RATE // 25, np.float32)
    loop = asyncio.get_running_loop()
    for number, turn in enumerate(turns):
        before = view.responses
        if isinstance(turn, str):
            print(f"you: {turn}", flush=True)
            await session.send_text(turn)
        else:
            await session.stream_audio(turn)
        end = loop.time() + ANSWER_TIMEOUT
        while view.responses == before or not view.started.is_set():
            await session.stream_audio(silence)
            if loop.time() > end:
                raise UserError(f"no answer within {ANSWER_TIMEOUT:.0f} s")
        if interrupt is not None and number + 1 < len(turns) and not isinstance(turns[number + 1], str):
            await session.stream_audio(np.zeros(int(interrupt * SAMPLE_RATE), np.float32))
            continue
        while not view.done.is_set() or view.playback.remaining_seconds(loop.time()):
            await session.stream_audio(silence)
        await session.stream_audio(np.zeros(int(PAUSE * SAMPLE_RATE), np.float32))


async def _send_microphone(session: RealtimeConnection) -> None:
    """Send the microphone's audio until Ctrl-C."""
    from speechgpt2.client import BLOCK_SAMPLES

    loop = asyncio.get_running_loop()
    blocks: asyncio.Queue[np.ndarray] = asyncio.Queue()

    def queue_block(data: Any, *_: object) -> None:
        loop.call_soon_threadsafe(blocks.put_nowait, data[:, 0].copy())

    with open_stream(sounddevice().InputStream, blocksize=BLOCK_SAMPLES, callback=queue_block):
        print("speak; Ctrl-C ends the session", file=sys.stderr)
        while True:
            await session.append_audio(await blocks.get())


def save(out: Path, answers: dict[str, list[np.ndarray]]) -> None:
    """Write the answers in their order, with a pause between them.

    Raises:
        UserError: there is no audio.
    """
    import numpy as np

    from speechgpt2 import audio
    from speechgpt2.types import SAMPLE_RATE

    pause = np.zeros(int(PAUSE * SAMPLE_RATE), np.float32)
    pieces = [piece for chunks in answers.values() for piece in (pause, *chunks)][1:]
    if not pieces:
        raise UserError(f"the server sent no audio; {out} was not written")
    pcm = np.concatenate(pieces)
    audio.save(out, pcm)
    print(f"{out}: {len(pcm) / SAMPLE_RATE:.2f} s")
