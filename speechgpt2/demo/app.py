"""The demo's page: modes, greetings, styles, a microphone, a text field, and the conversation so far.

    blocks = build_page(ServerAddress("ws://127.0.0.1:8000"), greetings)
    url = launch(blocks, "127.0.0.1", 7860)              # returns at once; blocks.close() ends it

Gradio identifies every open page by a session hash; `SessionStore` keeps one `DemoSession` for each.
"""

from __future__ import annotations

import asyncio
import io
import wave
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import gradio as gr
import numpy as np

from speechgpt2 import audio
from speechgpt2.demo.connection import ServerAddress
from speechgpt2.demo.greetings import Greeting
from speechgpt2.demo.saved_talks import Remembered, SavedTalks, forget, remember
from speechgpt2.demo.session import DemoSession
from speechgpt2.errors import UserError
from speechgpt2.style import table
from speechgpt2.types import SAMPLE_RATE, AudioDelta, Error, Mode, ReplyDone

MAX_SESSIONS = 1000  # in the store; beyond it, sessions without a slot are dropped
FIRST_SEGMENT, NEXT_SEGMENTS = SAMPLE_RATE * 24 // 100, SAMPLE_RATE * 48 // 100  # samples in an audio segment
LATE_UPDATES = 0.3  # seconds within which updates of an old conversation may still reach its page
MAX_UPLOAD = "16mb"
CACHE_SECONDS = 3600  # visitors' recordings are deleted after that
FONT = ("system-ui", "sans-serif")  # a local font: the page loads nothing from other servers
NO_GREETING = -1
SLOWEST, FASTEST = 0.25, 1.5  # speeds of a session
LIVE_PAGE = """<iframe src="{url}" title="live page" allow="microphone {url}; autoplay {url}" loading="lazy"
    style="width: 100%; height: min(80vh, 760px); border: 0"></iframe>"""
STORAGE = "speechgpt2-conversations"  # in the browser: their ids
MODES = [
    ("you speak, it speaks", "s2s"),
    ("you speak, it writes", "s2t"),
    ("you write, it speaks", "t2s"),
    ("you write, it writes", "t2t"),
]
TURN_EVENT: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "multiple"}  # a new turn interrupts


class SessionStore:
    """The sessions of all open pages."""

    def __init__(self, server: ServerAddress):
        self.server = server
        self._sessions: dict[str, DemoSession] = {}

    def get(self, request: gr.Request) -> DemoSession:
        """Return the session of the page that sends `request`."""
        page = str(request.session_hash)
        if page not in self._sessions:
            idle = [key for key, session in self._sessions.items() if not session.open]
            for key in idle[: max(0, len(self._sessions) - MAX_SESSIONS)]:
                del self._sessions[key]
            self._sessions[page] = DemoSession(self.server)
        return self._sessions[page]

    async def remove(self, request: gr.Request) -> None:
        """Close the session of a page that was closed."""
        session = self._sessions.pop(str(request.session_hash), None)
        if session is not None:
            await session.close()


class PageHandlers:
    """The event handlers of the page's components."""

    def __init__(self, server: ServerAddress, greetings: Sequence[Greeting]):
        self.sessions, self.greetings = SessionStore(server), greetings
        self.talks = SavedTalks(server)

    async def speak(self, recording: str | None, mode: Mode, request: gr.Request) -> AsyncIterator[tuple[Any, ...]]:
        """Answer a recording, given by its file's path."""
        try:
            pcm = audio.load(recording) if recording else np.zeros(0, np.float32)
        except UserError:
            raise gr.Error("the recording cannot be read as audio") from None  # do not reveal the path
        async for update in self._ask(pcm, mode, request):
            yield update

    async def write(self, text: str, mode: Mode, request: gr.Request) -> AsyncIterator[tuple[Any, ...]]:
        """Answer a text."""
        async for update in self._ask(text, mode, request):
            yield update

    async def _ask(self, turn: str | np.ndarray, mode: Mode, request: gr.Request) -> AsyncIterator[tuple[Any, ...]]:
        """Yield the transcript, the next audio segment, and the input component, which is cleared once."""
        session, segments, complete = self.sessions.get(request), AudioSegmenter(), False
        cleared: Any = None
        with error_message():
            async for event in session.ask(turn, mode):
                complete = isinstance(event, ReplyDone) and event.reason != "interrupted"
                if isinstance(event, Error):
                    gr.Info(event.message)
                wav = segments.push(event.pcm) if isinstance(event, AudioDelta) else None
                yield chat_messages(session), wav or gr.skip(), cleared
                cleared = gr.skip()
            yield chat_messages(session), (segments.flush() if complete else None) or gr.skip(), cleared

    async def stop(self, request: gr.Request) -> Any:
        """Interrupt the response, and drop the audio that the page has not played."""
        await self.sessions.get(request).cancel()
        return gr.Audio(value=None)

    async def greet(self, number: int, request: gr.Request) -> tuple[Any, ...]:
        """Start a new conversation with a greeting, and play it."""
        greeting = self.greetings[number] if 0 <= number < len(self.greetings) else None
        session = self.sessions.get(request)
        await session.clear(greeting)
        with error_message():
            pcm = await asyncio.to_thread(greeting.audio) if greeting is not None else None
        preview = None if pcm is None else (SAMPLE_RATE, np.frombuffer(audio.to_pcm16(pcm), "<i2"))
        return chat_messages(session), preview

    async def clear(self, request: gr.Request) -> tuple[Any, ...]:
        """Forget the conversation; keep its greeting."""
        session = self.sessions.get(request)
        await session.clear(session.greeting)
        return chat_messages(session), gr.Audio(value=None)

    async def set_style(self, style: str, request: gr.Request) -> None:
        """Have the next responses spoken in a style."""
        self.sessions.get(request).delivery["style"] = style or None

    async def set_speed(self, speed: float, request: gr.Request) -> None:
        """Have the next responses spoken at a speed."""
        self.sessions.get(request).delivery["speed"] = speed

    async def remember(self, talks: Remembered, request: gr.Request) -> tuple[Any, ...]:
        """Put the conversation among those that the browser remembers, if the server saves it."""
        session = self.sessions.get(request)
        said = next((line.text for line in session.transcript if line.role == "user"), None)
        if session.saved_id is None or said is None:
            return gr.skip(), gr.skip()
        talks = remember(talks, session.saved_id, said)
        return talks, talk_choices(talks, session.saved_id)

    async def resume(self, id: str | None, request: gr.Request) -> list[dict[str, str]]:
        """Show a saved conversation, and resume it at the next turn."""
        session = self.sessions.get(request)
        if id:
            with error_message():
                await session.resume(await self.talks.load(id))
        return chat_messages(session)

    async def delete(self, id: str | None, talks: Remembered, request: gr.Request) -> tuple[Any, ...]:
        """Delete a saved conversation."""
        session = self.sessions.get(request)
        if id:
            if session.saved_id == id:
                await session.clear(session.greeting)
            with error_message():
                await self.talks.delete(id)
            talks = forget(talks, id)
        return talks, talk_choices(talks), chat_messages(session)

    async def refresh(self, request: gr.Request) -> list[dict[str, str]]:
        """Return the transcript once more, in case an update of the old conversation came after it was cleared."""
        await asyncio.sleep(LATE_UPDATES)
        return chat_messages(self.sessions.get(request))


class AudioSegmenter:
    """Collects audio into segments that are worth a file: a short one first, then longer ones."""

    def __init__(self) -> None:
        self._chunks: list[np.ndarray] = []
        self._segment_samples = FIRST_SEGMENT

    def push(self, pcm: np.ndarray) -> bytes | None:
        """Add `pcm [N]`; returns a WAV file when a segment is complete."""
        self._chunks.append(pcm)
        return self.flush() if sum(map(len, self._chunks)) >= self._segment_samples else None

    def flush(self) -> bytes | None:
        """Return the remaining audio as a WAV file; None if there is none."""
        if not self._chunks:
            return None
        file = io.BytesIO()
        with wave.open(file, "wb") as out:
            out.setnchannels(1)
            out.setsampwidth(2)
            out.setframerate(SAMPLE_RATE)
            out.writeframes(audio.to_pcm16(np.concatenate(self._chunks)))
        self._chunks, self._segment_samples = [], NEXT_SEGMENTS
        return file.getvalue()


@contextmanager
def error_message() -> Iterator[None]:
    """Show the message of a `UserError` on the page."""
    try:
        yield
    except UserError as error:
        raise gr.Error(str(error), print_exception=False) from None


def talk_choices(talks: Remembered, chosen: str | None = None) -> Any:
    """Return the list of a browser's conversations, as an update of its component."""
    return gr.Dropdown(choices=[(talk["title"], talk["id"]) for talk in talks], value=chosen)


def privacy(server: ServerAddress) -> str:
    """Say who sees a conversation, and for how long."""
    if not server.saves:
        return "Nobody else sees your conversation. It is deleted when you close this page."
    until = f"for {server.keep_days:g} days" if server.keep_days else "until you delete it"
    return f"The server keeps your conversation {until}. Only this browser lists it."


def chat_messages(session: DemoSession) -> list[dict[str, str]]:
    """Return the transcript in the form of Gradio's chatbot."""
    return [{"role": line.role, "content": line.text or "…"} for line in session.transcript]


def update_inputs(mode: Mode) -> tuple[Any, ...]:
    """Show the components that `mode` needs: microphone, text field, player."""
    return (gr.Audio(visible=mode[0] == "s"), gr.Row(visible=mode[0] == "t"), gr.Audio(visible=mode[2] == "s"))


def build_page(
    server: ServerAddress,
    greetings: Sequence[Greeting] = (),
    title: str = "speechgpt2",
    examples: Sequence[str] = (),
    live_page: str | None = None,
    framed: bool = False,
) -> gr.Blocks:
    """Build the page; `launch` serves it.

    Args:
        server: The server.
        greetings: Greetings to choose from.
        title: The page's title.
        examples: Questions to choose from.
        live_page: The URL of the server's own page, if visitors can reach it.
        framed: Whether the server lets this page show it in a frame.
    """
    handlers = PageHandlers(server, greetings)
    hidden: dict[str, Any] = {"show_progress": "hidden"}
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(CACHE_SECONDS // 4, CACHE_SECONDS)) as blocks:
        gr.Markdown(f"# {title}\n{privacy(server)}")
        if live_page is not None and not framed:
            gr.Markdown(f"To talk without pressing buttons, open the [live page]({live_page}). It answers sooner.")
        with gr.Tab("Turn by turn") if framed else nullcontext(), gr.Row():
            with gr.Column(scale=1, min_width=260):
                mode = gr.Radio(MODES, value="s2s", label="Mode")
                choices = [("none", NO_GREETING), *((g.label, number) for number, g in enumerate(greetings))]
                greeting = gr.Dropdown(choices, value=NO_GREETING, label="Greeting", visible=bool(greetings))
                preview = gr.Audio(
                    label="Greeting",
                    interactive=False,
                    autoplay=True,
                    visible=any(g.playable for g in greetings),
                    buttons=[],
                )
                add_delivery(handlers)
                clear = gr.Button("Clear the conversation")
                talks, earlier, go_on, delete = add_talks(visible=server.saves)
            with gr.Column(scale=2, min_width=320):
                chat = gr.Chatbot(
                    label="Conversation", height=380, render_markdown=False, feedback_options=None, buttons=[]
                )
                player = gr.Audio(
                    label="Response", streaming=True, autoplay=True, interactive=False, buttons=["download"]
                )
                microphone = gr.Audio(
                    label="You", sources=["microphone", "upload"], type="filepath", format="wav", editable=False
                )
                with gr.Column(visible=False) as text_row:
                    with gr.Row():
                        text = gr.Textbox(
                            show_label=False, placeholder="Write, and press Enter", scale=4, max_length=4000
                        )
                        send = gr.Button("Send", variant="primary", scale=1, min_width=80)
                    if examples:
                        gr.Examples([[example] for example in examples], text, label="Examples")
                stop = gr.Button("Stop the response")
        if framed:
            with gr.Tab("Live"):
                gr.HTML(LIVE_PAGE.format(url=live_page))
        mode.change(update_inputs, mode, [microphone, text_row, player], api_visibility="private", **hidden)
        spoken, written = [microphone.stop_recording, microphone.upload], [text.submit, send.click]
        turns = [
            gr.on(
                spoken, handlers.speak, [microphone, mode], [chat, player, microphone], api_name="speak", **TURN_EVENT
            ),
            gr.on(written, handlers.write, [text, mode], [chat, player, text], api_name="write", **TURN_EVENT),
        ]
        stop.click(handlers.stop, None, player, api_name="stop", queue=False, **hidden)
        greeted = greeting.input(handlers.greet, greeting, [chat, preview], api_name="greet", **hidden)
        cleared = gr.on([clear.click, chat.clear], handlers.clear, None, [chat, player], api_name="clear", **hidden)
        for event in (greeted, cleared):
            event.then(handlers.refresh, None, chat, api_visibility="private", **hidden)
        if server.saves:
            for turn in turns:
                turn.then(handlers.remember, talks, [talks, earlier], api_visibility="private", **hidden)
            go_on.click(handlers.resume, earlier, chat, api_visibility="private", **hidden)
            delete.click(handlers.delete, [earlier, talks], [talks, earlier, chat], api_visibility="private", **hidden)
            blocks.load(talk_choices, talks, earlier, api_visibility="private", **hidden)
        blocks.unload(handlers.sessions.remove)
    return blocks


def add_delivery(handlers: PageHandlers) -> None:
    """Add the components for style and speed."""
    style = gr.Dropdown([("as usual", ""), *table()], value="", label="Style")
    speed = gr.Slider(SLOWEST, FASTEST, value=1.0, step=0.05, label="Speed", buttons=[])
    style.input(handlers.set_style, style, None, api_name="style", show_progress="hidden")
    speed.release(handlers.set_speed, speed, None, api_name="speed", show_progress="hidden")


def add_talks(visible: bool) -> tuple[gr.BrowserState, gr.Dropdown, gr.Button, gr.Button]:
    """Add the list of the browser's conversations."""
    # The secret is not secret: it only has to be the same after a restart.
    talks = gr.BrowserState([], storage_key=STORAGE, secret=STORAGE)
    with gr.Group(visible=visible):
        earlier = gr.Dropdown([], value=None, label="Earlier conversations")
        with gr.Row():
            go_on, delete = gr.Button("Go on", size="sm"), gr.Button("Delete", size="sm")
    return talks, earlier, go_on, delete


def launch(blocks: gr.Blocks, host: str, port: int) -> str:
    """Serve the page in background threads.

    Returns:
        Its URL.

    Raises:
        UserError: The address is in use.
    """
    blocks.queue(default_concurrency_limit=None)  # the server limits the number of sessions
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
            max_file_size=MAX_UPLOAD,
        )
    except OSError as error:
        raise UserError(f"cannot listen on {host} port {port}: {str(error).splitlines()[0]}") from None
    return url.rstrip("/")
