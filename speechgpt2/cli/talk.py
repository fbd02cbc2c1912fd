"""`sg2 talk`: a client of a server, with recordings or a microphone."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from speechgpt2.cli.microphone import sounddevice
from speechgpt2.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from speechgpt2.client import Listener, Talk

PAUSE = 0.3  # seconds of silence between an answer and the next question
PATIENCE = 30.0  # seconds to wait for an answer to begin


def talk(
    sounds: Annotated[list[Path] | None, typer.Argument(help="What to say, one turn each.", metavar="SOUND...")] = None,
    texts: Annotated[
        list[str] | None, typer.Option("--text", "-t", help="A typed turn; may be given several times.", metavar="TEXT")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A .wav or .flac file for what was answered, as it was heard.")
    ] = None,
    url: Annotated[str, typer.Option(help="The server.", metavar="URL")] = "ws://127.0.0.1:8000",
    key: Annotated[str | None, typer.Option(help="An API key.", envvar="SG2_API_KEY", metavar="KEY")] = None,
    voice: Annotated[str | None, typer.Option(help="One of the server's voices.")] = None,
    instructions: Annotated[str | None, typer.Option(help="How it should behave.")] = None,
    interrupt: Annotated[
        float | None, typer.Option(min=0.1, help="Speak the next SOUND so many seconds into an answer.")
    ] = None,
    mic: Annotated[bool, typer.Option("--mic", help="Talk by microphone; Ctrl-C ends it.")] = False,
    play: Annotated[bool, typer.Option("--play", help="Play the answers.")] = False,
) -> None:
    """Talk with a server (`sg2 serve`): speech goes out in real time, answers come back, and may be interrupted."""
    from speechgpt2 import audio, hub

    if not (sounds or texts or mic):
        raise UserError("nothing to say: give a sound file, --text, or --mic")
    if out is not None:
        audio.check_format(out)
        hub.check_writable(out)
    if mic or play:
        sounddevice()
    turns: list[Any] = [audio.load(path) for path in sounds or []] + list(texts or [])
    session: dict[str, Any] = {}
    if voice:
        session["audio"] = {"output": {"voice": voice}}
    if instructions:
        session["instructions"] = instructions
    with ExitStack() as stack:
        screen = Screen(stack.enter_context(Loudspeaker()) if play else None)
        asyncio.run(_talk(url, key, session, turns, interrupt, mic, screen))
    if out is not None:
        save(out, screen.heard)


class Screen:
    """Shows the dialogue, plays it, and keeps what was heard."""

    def __init__(self, speaker: Loudspeaker | None):
        from speechgpt2.client import Listener

        self.listener: Listener = Listener()
        self.speaker, self.heard = speaker, {}  # type: ignore[var-annotated]  # item -> its chunks
        self.answers = 0  # begun so far; of the latest one:
        self.began, self.done = asyncio.Event(), asyncio.Event()
        self._line: str | None = None  # whose words stand in the open line

    async def show(self, talk: Talk) -> None:
        """Follow the session until it ends. Errors: `UserError` for an answer that failed."""
        async for event in talk:
            await self._on(talk, event)

    async def _on(self, talk: Talk, event: dict[str, Any]) -> None:
        kind = event["type"]
        if kind == "response.output_audio.delta":
            self._hear(event)
        elif kind in ("response.output_audio_transcript.delta", "response.output_text.delta"):
            self._write("sg2", event["delta"])
            self.began.set()
        elif kind == "conversation.item.input_audio_transcription.completed":
            self._write("you", event["transcript"].strip())
        elif kind == "input_audio_buffer.speech_started":
            await self.interrupted(talk)
        elif kind == "response.output_audio.done":
            self.listener.complete(event["item_id"])
        elif kind == "response.created":
            self.answers += 1
            self.began.clear()
            self.done.clear()
        elif kind == "response.done":
            self._end_line()
            self.done.set()
            self.began.set()
        elif kind == "error":
            self._end_line()
            print("server:", event["error"]["message"], file=sys.stderr)

    async def interrupted(self, talk: Talk) -> None:
        """The user speaks: what was not heard is forgotten, here and there."""
        cut = self.listener.flush(asyncio.get_running_loop().time())
        if cut is None:
            return
        item, milliseconds = cut
        if self.speaker is not None:
            self.speaker.flush()
        self._end_line()
        print(f"[interrupted after {milliseconds / 1000:.1f} s]", flush=True)
        self.heard[item] = cut_to(self.heard[item], milliseconds)
        await talk.send("conversation.item.truncate", item_id=item, content_index=0, audio_end_ms=milliseconds)

    def _hear(self, event: dict[str, Any]) -> None:
        from speechgpt2.client import sound

        pcm, now = sound(event), asyncio.get_running_loop().time()
        self.listener.arrive(event["item_id"], len(pcm), now)
        self.heard.setdefault(event["item_id"], []).append(pcm)
        self.began.set()
        if self.speaker is not None:
            self.speaker.play(pcm)

    def _write(self, who: str, words: str) -> None:
        if self._line != who:
            self._end_line()
            print(f"{who}: ", end="")
            words = words.lstrip()
        print(words, end="", flush=True)
        self._line = who

    def _end_line(self) -> None:
        if self._line is not None:
            print(flush=True)
        self._line = None


class Loudspeaker:
    """Plays chunks as they come, and falls silent at once when asked to."""

    def __init__(self) -> None:
        from speechgpt2.types import SAMPLE_RATE

        self._chunks: deque[np.ndarray] = deque()
        self._stream = sounddevice().OutputStream(
            samplerate=SAMPLE_RATE, channels=1, dtype="float32", callback=self._fill
        )

    def __enter__(self) -> Loudspeaker:
        self._stream.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def play(self, pcm: np.ndarray) -> None:
        """Queue `pcm [N]`."""
        self._chunks.append(pcm)

    def flush(self) -> None:
        """Forget what was not played."""
        self._chunks.clear()

    def _fill(self, out: np.ndarray, count: int, *_: object) -> None:
        """On the device's thread: `out [count, 1]` is what is played next."""
        out.fill(0)
        filled = 0
        while filled < count:
            try:
                chunk = self._chunks.popleft()
            except IndexError:
                return
            taken = min(count - filled, len(chunk))
            out[filled : filled + taken, 0] = chunk[:taken]
            filled += taken
            if taken < len(chunk):
                self._chunks.appendleft(chunk[taken:])


def cut_to(chunks: list[np.ndarray], milliseconds: int) -> list[np.ndarray]:
    """The beginning of a sound in chunks."""
    import numpy as np

    from speechgpt2.types import SAMPLE_RATE

    return [np.concatenate(chunks)[: milliseconds * SAMPLE_RATE // 1000]]


async def _talk(
    url: str,
    key: str | None,
    session: dict[str, Any],
    turns: list[Any],
    interrupt: float | None,
    mic: bool,
    screen: Screen,
) -> None:
    from speechgpt2.client import connect

    session.setdefault("audio", {}).setdefault("input", {})["transcription"] = {"model": "own"}
    async with connect(url, key, session=session) as open_talk:
        following = asyncio.create_task(screen.show(open_talk))
        speaking = asyncio.create_task(_microphone(open_talk) if mic else _say(open_talk, turns, interrupt, screen))
        done, _ = await asyncio.wait({following, speaking}, return_when=asyncio.FIRST_COMPLETED)
        following.cancel()
        speaking.cancel()
        for task in done:
            task.result()


async def _say(talk: Talk, turns: list[Any], interrupt: float | None, screen: Screen) -> None:
    """Say one turn after the other, each when the answer before it was heard, or `interrupt` seconds into it."""
    import numpy as np

    from speechgpt2.types import SAMPLE_RATE

    silence = np.zeros(SAMPLE_RATE // 25, np.float32)
    loop = asyncio.get_running_loop()
    for number, turn in enumerate(turns):
        before = screen.answers
        if isinstance(turn, str):
            print(f"you: {turn}", flush=True)
            await talk.write(turn)
        else:
            await talk.speak(turn)
        end = loop.time() + PATIENCE
        while screen.answers == before or not screen.began.is_set():
            await talk.speak(silence)
            if loop.time() > end:
                raise UserError(f"no answer within {PATIENCE:.0f} s")
        if interrupt is not None and number + 1 < len(turns) and not isinstance(turns[number + 1], str):
            await talk.speak(np.zeros(int(interrupt * SAMPLE_RATE), np.float32))
            continue
        while not screen.done.is_set() or screen.listener.left(loop.time()):
            await talk.speak(silence)
        await talk.speak(np.zeros(int(PAUSE * SAMPLE_RATE), np.float32))


async def _microphone(talk: Talk) -> None:
    """Send what the microphone hears, until Ctrl-C."""
    from speechgpt2.client import BLOCK
    from speechgpt2.types import SAMPLE_RATE

    loop, blocks = asyncio.get_running_loop(), asyncio.Queue()  # type: ignore[var-annotated]

    def hear(data: Any, *_: object) -> None:
        loop.call_soon_threadsafe(blocks.put_nowait, data[:, 0].copy())

    with sounddevice().InputStream(samplerate=SAMPLE_RATE, channels=1, dtype="float32", blocksize=BLOCK, callback=hear):
        print("speak; Ctrl-C ends it", file=sys.stderr)
        while True:
            await talk.append(await blocks.get())


def save(out: Path, answers: dict[str, list[np.ndarray]]) -> None:
    """Write what was heard, answer after answer. Errors: `UserError` if nothing was."""
    import numpy as np

    from speechgpt2 import audio
    from speechgpt2.types import SAMPLE_RATE

    pause = np.zeros(int(PAUSE * SAMPLE_RATE), np.float32)
    pieces = [piece for chunks in answers.values() for piece in (pause, *chunks)][1:]
    if not pieces:
        raise UserError(f"nothing was said; {out} was not written")
    pcm = np.concatenate(pieces)
    audio.save(out, pcm)
    print(f"{out}: {len(pcm) / SAMPLE_RATE:.2f} s")
