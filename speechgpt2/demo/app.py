"""The page: who speaks and who writes, a greeting to listen to, a microphone, a line to write in, and the talk so far.

    blocks = page(Wire("ws://127.0.0.1:8000"), greetings)
    url = launch(blocks, "127.0.0.1", 7860)              # returns at once; blocks.close() ends it

Gradio gives every open page a name of its own; `Visits` keeps one `Visit` under each, until the page is closed.
"""

from __future__ import annotations

import asyncio
import io
import wave
from collections.abc import AsyncIterator, Sequence
from typing import Any

import gradio as gr
import numpy as np

from speechgpt2 import audio
from speechgpt2.demo.greetings import Greeting
from speechgpt2.demo.talk import Visit, Wire
from speechgpt2.errors import UserError
from speechgpt2.types import SAMPLE_RATE, AudioDelta, Error, Mode, ReplyDone

MOST = 1000  # pages that are remembered though their talk is over
FIRST_SOUND, MORE_SOUND = SAMPLE_RATE * 24 // 100, SAMPLE_RATE * 48 // 100  # samples sent to the page at a time
STRAGGLING = 0.3  # seconds after which nothing more of a talk that is over comes to its page
LARGEST_UPLOAD = "16mb"
KEPT_SECONDS = 3600  # what visitors recorded is deleted after that
FONT = ("system-ui", "sans-serif")  # nothing is fetched from elsewhere
NO_GREETING = -1
MODES = [
    ("you speak, it speaks", "s2s"),
    ("you speak, it writes", "s2t"),
    ("you write, it speaks", "t2s"),
    ("you write, it writes", "t2t"),
]


class Visits:
    """The visitors by the names of their pages."""

    def __init__(self, wire: Wire):
        self.wire = wire
        self._visits: dict[str, Visit] = {}

    def of(self, request: gr.Request) -> Visit:
        """The one who asks."""
        name = str(request.session_hash)
        if name not in self._visits:
            gone = [old for old, visit in self._visits.items() if not visit.open][: max(0, len(self._visits) - MOST)]
            for old in gone:
                del self._visits[old]
            self._visits[name] = Visit(self.wire)
        return self._visits[name]

    async def leave(self, request: gr.Request) -> None:
        """The page was closed."""
        visit = self._visits.pop(str(request.session_hash), None)
        if visit is not None:
            await visit.close()


class Page:
    """What the page's parts do. The talk is always shown as it stands in the visitor's own `Visit`."""

    def __init__(self, wire: Wire, greetings: Sequence[Greeting]):
        self.visits, self.greetings = Visits(wire), greetings

    async def speak(self, recording: str | None, mode: Mode, request: gr.Request) -> AsyncIterator[tuple[Any, ...]]:
        """A recording, by its file's name, is answered."""
        try:
            pcm = audio.load(recording) if recording else np.zeros(0, np.float32)
        except UserError:
            raise gr.Error("the recording cannot be read as sound") from None  # its path is nobody's business
        async for shown in self._answer(pcm, mode, request):
            yield shown

    async def write(self, text: str, mode: Mode, request: gr.Request) -> AsyncIterator[tuple[Any, ...]]:
        """What was written is answered."""
        async for shown in self._answer(text, mode, request):
            yield shown

    async def _answer(self, turn: str | np.ndarray, mode: Mode, request: gr.Request) -> AsyncIterator[tuple[Any, ...]]:
        """Yields the talk, the next sound, and the place of input, which is emptied once."""
        visit, sound, whole = self.visits.of(request), Sound(), False
        emptied: Any = None
        try:
            async for event in visit.ask(turn, mode):
                whole = isinstance(event, ReplyDone) and event.reason != "interrupted"
                if isinstance(event, Error):
                    gr.Info(event.message)
                wav = sound.push(event.pcm) if isinstance(event, AudioDelta) else None
                yield shown(visit), wav or gr.skip(), emptied
                emptied = gr.skip()
            yield shown(visit), (sound.rest() if whole else None) or gr.skip(), emptied
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from None

    async def stop(self, request: gr.Request) -> Any:
        """The answer is interrupted, and what the page would still play of it is dropped."""
        await self.visits.of(request).stop()
        return gr.Audio(value=None)

    async def greet(self, number: int, request: gr.Request) -> tuple[Any, ...]:
        """A new talk begins, with a greeting to listen to."""
        greeting = self.greetings[number] if 0 <= number < len(self.greetings) else None
        visit = self.visits.of(request)
        await visit.clear(greeting)
        try:
            pcm = await asyncio.to_thread(lambda: greeting.pcm) if greeting is not None else None
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from None
        return shown(visit), None if pcm is None else (SAMPLE_RATE, np.frombuffer(audio.to_pcm16(pcm), "<i2"))

    async def clear(self, request: gr.Request) -> tuple[Any, ...]:
        """The talk is forgotten; a greeting stays."""
        visit = self.visits.of(request)
        await visit.clear(visit.greeting)
        return shown(visit), gr.Audio(value=None)

    async def show(self, request: gr.Request) -> list[dict[str, str]]:
        """The new talk once more: what an answer of the old one had sent may have come after it."""
        await asyncio.sleep(STRAGGLING)
        return shown(self.visits.of(request))


class Sound:
    """Gathers what comes of an answer into pieces that are worth a file: a short one first, then longer ones."""

    def __init__(self) -> None:
        self._held: list[np.ndarray] = []
        self._enough = FIRST_SOUND

    def push(self, pcm: np.ndarray) -> bytes | None:
        """Take in `pcm [N]`; returns a WAV file's content when there is enough for one."""
        self._held.append(pcm)
        return self.rest() if sum(map(len, self._held)) >= self._enough else None

    def rest(self) -> bytes | None:
        """What is left, as a WAV file's content; None if nothing is."""
        if not self._held:
            return None
        file = io.BytesIO()
        with wave.open(file, "wb") as out:
            out.setnchannels(1)
            out.setsampwidth(2)
            out.setframerate(SAMPLE_RATE)
            out.writeframes(audio.to_pcm16(np.concatenate(self._held)))
        self._held, self._enough = [], MORE_SOUND
        return file.getvalue()


def shown(visit: Visit) -> list[dict[str, str]]:
    """The talk as the page shows it."""
    return [{"role": line.role, "content": line.text or "…"} for line in visit.lines]


def fitting(mode: Mode) -> tuple[Any, ...]:
    """Which parts `mode` needs: microphone, line to write in, player."""
    return (gr.Audio(visible=mode[0] == "s"), gr.Row(visible=mode[0] == "t"), gr.Audio(visible=mode[2] == "s"))


def page(wire: Wire, greetings: Sequence[Greeting] = (), title: str = "speechgpt2") -> gr.Blocks:
    """The page, not yet served."""
    does = Page(wire, greetings)
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(KEPT_SECONDS // 4, KEPT_SECONDS)) as blocks:
        gr.Markdown(f"# {title}\nYour talk is yours alone, and is forgotten when you close this page.")
        with gr.Row():
            with gr.Column(scale=1, min_width=260):
                mode = gr.Radio(MODES, value="s2s", label="Mode")
                choices = [("none", NO_GREETING), *((g.words, number) for number, g in enumerate(greetings))]
                greeting = gr.Dropdown(choices, value=NO_GREETING, label="Greeting", visible=bool(greetings))
                preview = gr.Audio(
                    label="Greeting", interactive=False, autoplay=True, visible=bool(greetings), buttons=[]
                )
                clear = gr.Button("Clear the talk")
            with gr.Column(scale=2, min_width=320):
                talk = gr.Chatbot(label="Talk", height=380, render_markdown=False, feedback_options=None, buttons=[])
                player = gr.Audio(
                    label="Answer", streaming=True, autoplay=True, interactive=False, buttons=["download"]
                )
                microphone = gr.Audio(
                    label="You", sources=["microphone", "upload"], type="filepath", format="wav", editable=False
                )
                with gr.Row(visible=False) as writing:
                    line = gr.Textbox(show_label=False, placeholder="Write, and press Enter", scale=4, max_length=4000)
                    send = gr.Button("Send", variant="primary", scale=1, min_width=80)
                stop = gr.Button("Stop the answer")
        mode.change(fitting, mode, [microphone, writing, player], api_visibility="private", show_progress="hidden")
        spoken = [microphone.stop_recording, microphone.upload]
        gr.on(spoken, does.speak, [microphone, mode], [talk, player, microphone], api_name="speak", **QUICK)
        gr.on([line.submit, send.click], does.write, [line, mode], [talk, player, line], api_name="write", **QUICK)
        stop.click(does.stop, None, player, api_name="stop", show_progress="hidden", queue=False)
        anew: dict[str, Any] = {"show_progress": "hidden"}
        greeted = greeting.input(does.greet, greeting, [talk, preview], api_name="greet", **anew)
        cleared = gr.on([clear.click, talk.clear], does.clear, None, [talk, player], api_name="clear", **anew)
        for event in (greeted, cleared):
            event.then(does.show, None, talk, api_visibility="private", **anew)
        blocks.unload(does.visits.leave)
    return blocks


QUICK: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "multiple"}  # a new turn interrupts an answer


def launch(blocks: gr.Blocks, host: str, port: int) -> str:
    """Serve the page, on threads of its own; returns its address. Errors: `UserError` if it cannot listen there."""
    blocks.queue(default_concurrency_limit=None)  # the server says how many may talk
    theme = gr.themes.Default(font=FONT, font_mono=("monospace",))
    try:
        _, url, _ = blocks.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            theme=theme,
            footer_links=["api"],
            max_file_size=LARGEST_UPLOAD,
        )
    except OSError as error:
        raise UserError(f"cannot listen on {host} port {port}: {str(error).splitlines()[0]}") from None
    return url.rstrip("/")
