"""A session over WebRTC: sound goes by RTP, both ways and in real time, and events by the data channel.

    client                    Peer                         Call, a Connection
    microphone  ─── RTP ───►  listen, 24 kHz  ───────────►  hear ──► microphone ──► dialogue
    loudspeaker ◄── RTP ────  Voice, 20 ms of 48 kHz  ◄───  speaker ◄── AudioDelta
    events      ◄──────────►  receive, send  ◄───────────►  run

Here the server holds what the client has not heard yet: it can drop it at once, and knows to the frame how much was
sent. Needs aiortc, the extra `webrtc`.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from functools import singledispatchmethod
from typing import Any

from aiortc import (
    InvalidStateError,
    MediaStreamTrack,
    RTCBundlePolicy,
    RTCConfiguration,
    RTCDataChannel,
    RTCIceServer,
    RTCPeerConnection,
    RTCRtpReceiver,
    RTCSessionDescription,
)
from aiortc.mediastreams import MediaStreamError
from av import AudioFrame, AudioResampler

from speechgpt2 import audio
from speechgpt2.duplex.protocol import Engine
from speechgpt2.errors import UserError
from speechgpt2.server import formats, wire
from speechgpt2.server.channel import Close, Left
from speechgpt2.server.config import LimitsConfig
from speechgpt2.server.limits import Overflow
from speechgpt2.server.metrics import Metrics
from speechgpt2.server.realtime import Connection
from speechgpt2.server.response import Response, Status
from speechgpt2.server.speaker import FRAME, RATE, Speaker
from speechgpt2.server.wire import Session
from speechgpt2.types import SAMPLE_RATE, AudioDelta, Interrupted, SpeechStarted

log = logging.getLogger("sg2.realtime")
CONNECT = 15.0  # seconds within which a client has to be there
FRAME_SECONDS = FRAME / SAMPLE_RATE
LATE = 0.1  # seconds: a frame as late as this shifts those after it, which else catch up
QUIET = 0.5  # seconds without any sound from the client, which then count as silence
UNSENT = 64 * 1024  # bytes that the data channel may hold before more wait in the outbox
UNREAD = 1_000  # messages that may wait to be read
CANDIDATES = 32  # of a client's addresses, to which checks are sent
FAREWELL = 1.0  # seconds for the last events to leave
LINGER = 0.1  # seconds for the last of them to arrive
CLOSING = 2.0  # seconds for saying goodbye


class BadOffer(Exception):
    """The client's session description cannot be answered."""


class Call(Connection):
    """One session whose sound is played as it is sent. The caller opens and closes the dialogue."""

    def __init__(self, dialogue: Any, engine: Engine, session: Session, limits: LimitsConfig, metrics: Metrics):
        self.speaker = Speaker(self._started, self._stopped)
        self.cut: Response | None = None  # an answer of which no more is to be heard
        super().__init__(dialogue, engine, session, limits, metrics)
        self._tune()

    def hear(self, data: bytes, alive: bool = True) -> None:
        """The next of the microphone's sound, PCM16 at 24 kHz; not `alive` if it stands for what did not come."""
        now = time.monotonic()
        if alive:
            self.active = now
        self.dialogue.append_audio(self.microphone.push(data, now))

    def emit(self, type: str, **fields: Any) -> None:
        """Put one of the protocol's events into the outbox; sound goes another way."""
        if type != "response.output_audio.delta":
            super().emit(type, **fields)

    @property
    def busy(self) -> bool:
        """Whether an answer is under way, or on its way to the client."""
        return super().busy or self.speaker.busy

    @singledispatchmethod
    def on(self, what: Any) -> None:
        """A message of the client's, or an event of the dialogue's; here is what differs from a websocket."""
        super().on(what)

    @on.register
    def _(self, message: wire.SessionUpdate) -> None:
        super().on(message)
        self._tune()

    @on.register
    def _(self, message: wire.OutputClear) -> None:
        response = self.response
        self._drop()
        if response is not None and response.ending is None:
            response.ending = "client_cancelled"
            with suppress(UserError):  # its end is on its way already
                self.dialogue.interrupt(response.heard)

    @on.register
    def _(self, event: SpeechStarted) -> None:
        super().on(event)
        detection = self.session.audio.input.turn_detection
        if detection is not None and detection.interrupt_response:
            self._drop()  # the dialogue has stopped the answer; or it thinks that all of it was heard just now

    @on.register
    def _(self, event: AudioDelta) -> None:
        super().on(event)
        if self.response is not None and self.response is not self.cut:
            self.speaker.push(self.response, event.pcm)

    @on.register
    def _(self, event: Interrupted) -> None:
        super().on(event)
        self._drop()

    def _end(self, status: Status, reason: str | None = None, error: dict[str, Any] | None = None) -> None:
        response = self.response
        super()._end(status, reason, error)
        if response is not None:
            self.speaker.finish(response)
            if response is self.cut:
                self._truncate(response, response.heard or 0)

    def _tune(self) -> None:
        """What comes by RTP is PCM16 here, whatever format the session's settings name."""
        if self.microphone.format != "audio/pcm":
            self.microphone.become("audio/pcm")

    def _drop(self) -> None:
        """What was not sent never will be: the model forgets it, and so does the conversation."""
        for utterance in self.speaker.clear():
            response = utterance.response
            self.emit("output_audio_buffer.cleared", response_id=response.id)
            if response is self.response:
                self.cut, response.heard = response, utterance.sent  # truncated when it ends
            else:
                self.dialogue.truncate(response.number, utterance.sent)
                self._truncate(response, utterance.sent)

    def _truncate(self, response: Response, heard: int) -> None:
        """The conversation's part of `_drop`."""
        item = response.message
        if item is None or not item.parts[0].spoken or item not in self.conversation:
            return
        milliseconds = self.conversation.cut(item, formats.milliseconds(heard))
        self.emit("conversation.item.truncated", item_id=item.id, content_index=0, audio_end_ms=milliseconds)

    def _started(self, response: Response) -> None:
        self._announce("started", response)

    def _stopped(self, response: Response) -> None:
        self._announce("stopped", response)
        self.leave_if_done()

    def _announce(self, what: str, response: Response) -> None:
        try:
            self.emit(f"output_audio_buffer.{what}", response_id=response.id)
        except Overflow:  # we are called by aiortc, which would not pass it on
            self.finish(Close(1008, "too slow: what the server says is not read"))


class Voice(MediaStreamTrack):
    """What `speaker` has, a frame every 20 ms, asked for by aiortc for as long as there is a connection."""

    kind = "audio"

    def __init__(self, speaker: Speaker):
        super().__init__()
        self._speaker, self._count, self._due = speaker, 0, 0.0

    async def recv(self) -> AudioFrame:
        """The next frame, when it is time for it. Errors: `MediaStreamError` once stopped."""
        if self.readyState != "live":
            raise MediaStreamError
        now = time.monotonic()
        self._due = self._due if self._due > now - LATE else now
        await asyncio.sleep(max(0.0, self._due - now))
        self._due += FRAME_SECONDS
        pcm = self._speaker.frame()
        frame = AudioFrame(format="s16", layout="mono", samples=len(pcm))
        frame.planes[0].update(audio.to_pcm16(pcm))
        frame.sample_rate, frame.time_base = RATE, Fraction(1, RATE)
        frame.pts, self._count = self._count, self._count + len(pcm)
        return frame


class Peer:
    """The connection to one client. `ice_servers`: URLs that tell us our own address as others see it."""

    def __init__(self, call: Call, ice_servers: Sequence[str] = ()):
        self.call = call
        servers = [RTCIceServer(url) for url in ice_servers]
        # without a list aiortc would ask a server of its own choice
        self._connection = RTCPeerConnection(RTCConfiguration(servers, bundlePolicy=RTCBundlePolicy.MAX_BUNDLE))
        self._connection.on("track", self._hear)
        self._connection.on("datachannel", self._open)
        self._connection.on("connectionstatechange", self._watch)
        self._channel: RTCDataChannel | None = None
        self._track: MediaStreamTrack | None = None
        self._opened, self._room = asyncio.Event(), asyncio.Event()
        self._messages: asyncio.Queue[str | bytes | Left] = asyncio.Queue()

    async def answer(self, offer: str) -> str:
        """Our session description for the client's `offer`. Errors: `BadOffer`."""
        kinds = sorted(re.findall(r"^m=(\w+)", offer, re.MULTILINE))
        if kinds != ["application", "audio"]:
            raise BadOffer(f"it must have one audio and one data channel (m=audio, m=application), not {kinds}")
        if "a=fingerprint:" not in offer:
            raise BadOffer("it names no fingerprint of a certificate")
        capabilities = RTCRtpReceiver.getCapabilities("audio")
        assert capabilities is not None
        opus = [codec for codec in capabilities.codecs if codec.mimeType.lower() == "audio/opus"]
        connection = self._connection
        connection.addTrack(Voice(self.call.speaker))
        connection.getTransceivers()[0].setCodecPreferences(opus)
        try:
            await connection.setRemoteDescription(RTCSessionDescription(reachable(offer), "offer"))
            await connection.setLocalDescription(await connection.createAnswer())
        except Exception as error:  # aiortc raises whatever it stumbles upon
            raise BadOffer(str(error) or type(error).__name__) from error
        return connection.localDescription.sdp

    async def talk(self) -> None:
        """The call, to its end. Errors: `Close`, `Left`."""
        waiting = asyncio.get_running_loop().call_later(CONNECT, self._give_up)
        try:
            await self.call.run(self._receive, self._send, self._listen())
        finally:
            waiting.cancel()

    def leave(self, code: int, reason: str) -> None:
        """The client is gone, or is to be taken for gone."""
        self._messages.put_nowait(Left(code, reason))

    async def close(self) -> None:
        """Let the last events leave, and hang up."""
        channel = self._channel
        if channel is not None and channel.readyState == "open":
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._until(channel, 0), FAREWELL)
            await asyncio.sleep(LINGER)
        try:
            await asyncio.wait_for(self._connection.close(), CLOSING)
        except asyncio.TimeoutError:
            log.warning("a connection did not close in time", extra={"fields": {"session": self.call.id}})

    # events

    def _open(self, channel: RTCDataChannel) -> None:
        """The client has opened a data channel: the first one is for the events."""
        if self._channel is not None:
            return
        self._channel = channel
        channel.on("message", self._take)
        channel.on("close", lambda: self.leave(1000, "client left"))
        channel.on("bufferedamountlow", self._room.set)
        self._opened.set()

    def _take(self, message: str | bytes) -> None:
        if self._messages.qsize() == UNREAD:
            self.leave(1008, "too fast: messages come faster than they can be read")
        elif self._messages.qsize() < UNREAD:
            self._messages.put_nowait(message)

    async def _receive(self) -> str | bytes:
        """The client's next message. Errors: `Left`."""
        message = await self._messages.get()
        if isinstance(message, Left):
            raise message
        return message

    async def _send(self, message: str) -> None:
        """An event to the client; waits while it reads none."""
        await self._opened.wait()
        channel = self._channel
        assert channel is not None
        try:
            channel.send(message)
        except InvalidStateError:
            raise Left(1000) from None
        except ValueError as error:  # more than the client has said that it can take
            self.call.complain(str(error), "event_too_large", kind="server_error")
        await self._until(channel, UNSENT)

    async def _until(self, channel: RTCDataChannel, most: int) -> None:
        """Wait until the channel holds at most so many bytes."""
        channel.bufferedAmountLowThreshold = most
        while channel.bufferedAmount > most:
            self._room.clear()
            await self._room.wait()

    # the connection

    def _give_up(self) -> None:
        if not self._opened.is_set():
            self.leave(1006, "no connection came about")

    def _watch(self) -> None:
        if self._connection.connectionState == "failed":
            self.leave(1006, "connection lost")
        elif self._connection.connectionState == "closed":
            self.leave(1000, "client left")

    # the microphone

    def _hear(self, track: MediaStreamTrack) -> None:
        self._track = track

    async def _listen(self) -> None:
        """What the client's microphone sends, for as long as the call lasts. Where nothing comes there is silence, or
        a client that stops sending when nobody speaks would never be answered.
        """
        await self._opened.wait()
        resampler = AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
        coming = asyncio.ensure_future(self._next())
        try:
            while True:
                await asyncio.wait([coming], timeout=QUIET)  # `wait_for` can lose a cancellation
                if not coming.done():
                    self.call.hear(bytes(2 * int(QUIET * SAMPLE_RATE)), alive=False)
                    continue
                frame, coming = coming.result(), asyncio.ensure_future(self._next())
                frame.pts = None  # a jump in the client's clock is none of the resampler's business
                for piece in resampler.resample(frame):
                    self.call.hear(bytes(piece.planes[0])[: 2 * piece.samples])
        finally:
            coming.cancel()

    async def _next(self) -> AudioFrame:
        """The microphone's next frame; waits for ever if no more come."""
        if self._track is not None:
            with suppress(MediaStreamError):
                frame = await self._track.recv()
                assert isinstance(frame, AudioFrame)
                return frame
        return await asyncio.Future()


def reachable(offer: str) -> str:
    """The offer without addresses that only its own network can look up (`.local`), and without the word that no more
    come: clients need not name the address that they will reach us from, and browsers mostly do not.
    """
    lines, candidates = [], 0
    for line in offer.splitlines():
        if line.startswith("a=candidate:"):
            candidates += 1
            if candidates > CANDIDATES or ".local " in line:
                continue
        if line != "a=end-of-candidates":
            lines.append(line)
    return "\r\n".join(lines) + "\r\n"
