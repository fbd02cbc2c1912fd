"""Home Assistant's protocol, Wyoming, over TCP: transcription, speech synthesis, and written answers.

    describe                                    info: the programs asr, tts and handle
    transcribe, audio-start … audio-stop        transcript
    synthesize                                  audio-start … audio-stop
    synthesize-start, -chunk …, -stop           the same while the text still comes, then synthesize-stopped
    transcript                                  handled: the model's answer, in the conversation that its context names

`wyoming_connection.py` serves one connection with the package `wyoming`. https://github.com/OHF-Voice/wyoming describes
the protocol. It knows no keys.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from types import ModuleType

import numpy as np

from speechgpt2 import extras, long_form
from speechgpt2.server.auth import Principal
from speechgpt2.server.config import ServerConfig
from speechgpt2.server.gateway import Gateway
from speechgpt2.server.reply_api import ReplyApi
from speechgpt2.server.tcp import TcpProtocol
from speechgpt2.types import AudioDelta, TextDelta, Turn

MAX_CONVERSATIONS = 64  # that are remembered, the latest ones
MAX_TURNS = 20  # of a conversation


def require_library() -> ModuleType:
    """Import what needs the extra `wyoming`.

    Raises:
        MissingDependency: The extra is not installed.
    """
    extras.require("wyoming.info", "wyoming")
    return extras.require("speechgpt2.server.wyoming_connection", "wyoming")


class Wyoming(TcpProtocol, ReplyApi):
    """Serves Home Assistant."""

    name = "Wyoming"
    principal = Principal("wyoming")

    def __init__(self, gateway: Gateway):
        super().__init__(gateway)
        self._conversations: OrderedDict[str, list[Turn]] = OrderedDict()  # by Home Assistant's id

    def address(self, config: ServerConfig) -> str | None:
        """Return the address on which to listen. See `TcpProtocol`."""
        return config.wyoming

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection. See `TcpProtocol`."""
        await require_library().WyomingConnection(self, reader, writer).run()

    async def transcribe(self, pcm: np.ndarray) -> str:
        """Return the transcript of `pcm [N]` at 24 kHz; "" of silence.

        Raises:
            ApiError: The server is full, or the model writes no transcripts.
        """
        with self.admitted(self.principal):
            windows = await asyncio.to_thread(list, long_form.speech_windows([pcm]))
            return long_form.join([await self.transcript(window.pcm) for window in windows])

    async def speak(self, sentences: Sequence[str], voice: str) -> AsyncGenerator[np.ndarray, None]:
        """Yield the speech of sentences, pieces `[N]` at 24 kHz.

        Raises:
            ApiError: The server is full, or there is no such voice.
        """
        config = self.with_voice(self.gateway.default_session, voice, "voice.name")
        config = config.model_copy(update={"output_modalities": ["audio"]})
        with self.admitted(self.principal):
            async with aclosing(self.read_aloud(config, sentences)) as events:
                async for event in events:
                    if isinstance(event, AudioDelta):
                        yield event.pcm

    async def answer(self, text: str, conversation: str | None) -> str:
        """Return the model's written answer to `text`.

        Args:
            text: What the user said.
            conversation: Which conversation it belongs to; None: a new one, which is not remembered.

        Raises:
            ApiError: The server is full.
        """
        turns = [*self._conversations.get(conversation or "", ()), Turn.user(text)]
        config = self.gateway.default_session.model_copy(update={"output_modalities": ["text"]})
        with self.admitted(self.principal):
            async with aclosing(self.reply(config, turns)) as events:
                parts = [event.text async for event in events if isinstance(event, TextDelta)]
        answer = "".join(parts).strip()
        if conversation and answer:
            self._conversations[conversation] = [*turns, Turn.assistant(answer)][-MAX_TURNS:]
            self._conversations.move_to_end(conversation)
            while len(self._conversations) > MAX_CONVERSATIONS:
                self._conversations.popitem(last=False)
        return answer
