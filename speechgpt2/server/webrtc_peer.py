"""The WebRTC connection of one session: two audio tracks and a data channel. Needs aiortc, the extra `webrtc`.

client                    PeerConnection                      CallSession
microphone  ─── RTP ───►  _forward_audio, at 24 kHz  ──────►  append_audio ──► UserTurns ──► dialogue
speaker     ◄── RTP ────  PlayoutTrack, 20 ms at 48 kHz  ◄──  PlayoutBuffer ◄── AudioDelta
events      ◄──────────►  receive, send  ◄─────────────────►  Channel
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction

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
from speechgpt2.server.audio_formats import RationalResampler
from speechgpt2.server.call_session import CallSession
from speechgpt2.server.channel import CLIENT_DISCONNECTED, ClientDisconnected
from speechgpt2.server.playout import FRAME, PlayoutBuffer
from speechgpt2.server.schema import ProtocolError
from speechgpt2.types import SAMPLE_RATE

log = logging.getLogger("sg2.realtime")
OPUS_RATE = 2 * SAMPLE_RATE  # Opus' own sample rate
CONNECT_TIMEOUT = 15.0  # seconds within which the data channel must open
FRAME_SECONDS = FRAME / SAMPLE_RATE
MAX_LATENESS = 0.1  # seconds; frames later than this are not caught up
SILENCE_TIMEOUT = 0.5  # seconds without audio packets, which then count as silence
MAX_CHANNEL_BYTES = 64 * 1024  # buffered by the data channel; more waits in the outbound queue
MAX_UNREAD_MESSAGES = 1_000
MAX_CANDIDATES = 32  # addresses of a client that are tried
FLUSH_TIMEOUT = 1.0  # seconds for the data channel to send the last events
ARRIVAL_DELAY = 0.1  # seconds for the last of them to arrive
CLOSE_TIMEOUT = 2.0  # seconds


class InvalidOffer(Exception):
    """The client's session description (SDP offer) cannot be answered."""


class PlayoutTrack(MediaStreamTrack):
    """The model's audio: a frame of a playout buffer every 20 ms, requested by aiortc."""

    kind = "audio"

    def __init__(self, playout: PlayoutBuffer):
        super().__init__()
        self._playout, self._samples_sent, self._due = playout, 0, 0.0
        self._upsampler = RationalResampler(OPUS_RATE // SAMPLE_RATE, 1)

    async def recv(self) -> AudioFrame:
        """Wait until the next frame is due and return it.

        Raises:
            MediaStreamError: The track has stopped.
        """
        if self.readyState != "live":
            raise MediaStreamError
        now = time.monotonic()
        self._due = self._due if self._due > now - MAX_LATENESS else now
        await asyncio.sleep(max(0.0, self._due - now))
        self._due += FRAME_SECONDS
        pcm = self._upsampler.push(self._playout.next_frame())
        frame = AudioFrame(format="s16", layout="mono", samples=len(pcm))
        frame.planes[0].update(audio.to_pcm16(pcm))
        frame.sample_rate, frame.time_base = OPUS_RATE, Fraction(1, OPUS_RATE)
        frame.pts, self._samples_sent = self._samples_sent, self._samples_sent + len(pcm)
        return frame


class PeerConnection:
    """The connection to one client. See `channel.Transport`.

    Args:
        session: The session whose audio and events it carries.
        ice_servers: URLs of STUN servers, which tell this server its public address.
    """

    def __init__(self, session: CallSession, ice_servers: Sequence[str] = ()):
        self.session = session
        servers = [RTCIceServer(url) for url in ice_servers]
        # Without a list aiortc would contact a public STUN server of its own choice.
        self._connection = RTCPeerConnection(RTCConfiguration(servers, bundlePolicy=RTCBundlePolicy.MAX_BUNDLE))
        self._connection.on("track", self._on_track)
        self._connection.on("datachannel", self._on_data_channel)
        self._connection.on("connectionstatechange", self._on_state_change)
        self._data_channel: RTCDataChannel | None = None
        self._track: MediaStreamTrack | None = None
        self._opened, self._writable = asyncio.Event(), asyncio.Event()
        self._messages: asyncio.Queue[str | bytes | ClientDisconnected] = asyncio.Queue()

    async def answer(self, offer: str) -> str:
        """Accept the client's SDP offer.

        Returns:
            The SDP answer.

        Raises:
            InvalidOffer: The offer cannot be answered.
        """
        kinds = sorted(re.findall(r"^m=(\w+)", offer, re.MULTILINE))
        if kinds != ["application", "audio"]:
            raise InvalidOffer(f"it must have one audio and one data channel (m=audio, m=application), not {kinds}")
        if "a=fingerprint:" not in offer:
            raise InvalidOffer("it has no fingerprint of a certificate (a=fingerprint)")
        capabilities = RTCRtpReceiver.getCapabilities("audio")
        assert capabilities is not None
        opus = [codec for codec in capabilities.codecs if codec.mimeType.lower() == "audio/opus"]
        connection = self._connection
        connection.addTrack(PlayoutTrack(self.session.playout))
        connection.getTransceivers()[0].setCodecPreferences(opus)
        try:
            await connection.setRemoteDescription(RTCSessionDescription(filter_candidates(offer), "offer"))
            await connection.setLocalDescription(await connection.createAnswer())
        except Exception as error:  # aiortc raises many kinds of errors for a bad offer
            raise InvalidOffer(str(error) or type(error).__name__) from error
        return connection.localDescription.sdp

    async def run(self) -> None:
        """Run the session to its end.

        Raises:
            SessionClosed, ClientDisconnected: See `Channel.run`.
        """
        timeout = asyncio.get_running_loop().call_later(CONNECT_TIMEOUT, self._on_connect_timeout)
        try:
            await self.session.channel.run(self.session, self, self._forward_audio())
        finally:
            timeout.cancel()

    def disconnect(self, code: int, reason: str) -> None:
        """End the session as if the client had disconnected."""
        self._messages.put_nowait(ClientDisconnected(code, reason))

    async def close(self) -> None:
        """Send the last events and close the connection."""
        channel = self._data_channel
        if channel is not None and channel.readyState == "open":
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wait_for_buffer(channel, 0), FLUSH_TIMEOUT)
            await asyncio.sleep(ARRIVAL_DELAY)
        try:
            await asyncio.wait_for(self._connection.close(), CLOSE_TIMEOUT)
        except asyncio.TimeoutError:
            log.warning("a connection did not close in time", extra={"fields": {"session": self.session.id}})

    # the data channel

    async def receive(self) -> str | bytes:
        """Wait for the client's next message.

        Raises:
            ClientDisconnected: The client has gone.
        """
        message = await self._messages.get()
        if isinstance(message, ClientDisconnected):
            raise message
        return message

    async def send(self, data: str | bytes) -> None:
        """Send an event; wait while the client does not read."""
        await self._opened.wait()
        channel = self._data_channel
        assert channel is not None
        try:
            channel.send(data)
        except InvalidStateError:
            raise ClientDisconnected(1000) from None
        except ValueError as error:  # larger than the client accepts
            self.session.handle_error(ProtocolError(str(error), "event_too_large", kind="server_error"), None)
        await self._wait_for_buffer(channel, MAX_CHANNEL_BYTES)

    async def _wait_for_buffer(self, channel: RTCDataChannel, most: int) -> None:
        """Wait until the data channel buffers at most `most` bytes."""
        channel.bufferedAmountLowThreshold = most
        while channel.bufferedAmount > most:
            self._writable.clear()
            await self._writable.wait()

    def _on_data_channel(self, channel: RTCDataChannel) -> None:
        """Use the first data channel that the client opens."""
        if self._data_channel is not None:
            return
        self._data_channel = channel
        channel.on("message", self._on_message)
        channel.on("close", self._on_data_channel_close)
        channel.on("bufferedamountlow", self._writable.set)
        self._opened.set()

    def _on_message(self, message: str | bytes) -> None:
        if self._messages.qsize() == MAX_UNREAD_MESSAGES:
            self.disconnect(1008, "the client sends messages faster than they can be processed")
        elif self._messages.qsize() < MAX_UNREAD_MESSAGES:
            self._messages.put_nowait(message)

    def _on_data_channel_close(self) -> None:
        self.disconnect(1000, CLIENT_DISCONNECTED)

    # the connection

    def _on_connect_timeout(self) -> None:
        if not self._opened.is_set():
            self.disconnect(1006, "no connection was established")

    def _on_state_change(self) -> None:
        if self._connection.connectionState == "failed":
            self.disconnect(1006, "connection lost")
        elif self._connection.connectionState == "closed":
            self.disconnect(1000, CLIENT_DISCONNECTED)

    # the microphone

    def _on_track(self, track: MediaStreamTrack) -> None:
        self._track = track

    async def _forward_audio(self) -> None:
        """Pass the microphone's audio on to the session.

        A client may send no packets during silence; the turn must end all the same, so missing audio is silence.
        """
        await self._opened.wait()
        resampler = AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
        pending = asyncio.ensure_future(self._next_frame())
        try:
            while True:
                await asyncio.wait([pending], timeout=SILENCE_TIMEOUT)  # `wait_for` can lose a cancellation
                if not pending.done():
                    self.session.append_audio(bytes(2 * int(SILENCE_TIMEOUT * SAMPLE_RATE)), received=False)
                    continue
                frame, pending = pending.result(), asyncio.ensure_future(self._next_frame())
                frame.pts = None  # the resampler must not react to jumps of the client's clock
                for piece in resampler.resample(frame):
                    self.session.append_audio(bytes(piece.planes[0])[: 2 * piece.samples])
        finally:
            pending.cancel()

    async def _next_frame(self) -> AudioFrame:
        """Wait for the microphone's next frame; without end if the track has ended."""
        if self._track is not None:
            with suppress(MediaStreamError):
                frame = await self._track.recv()
                assert isinstance(frame, AudioFrame)
                return frame
        return await asyncio.Future()


def filter_candidates(offer: str) -> str:
    """Remove addresses that only the client's network can resolve (`.local`), and the end-of-candidates line.

    The client may connect from an address that its offer does not contain; browsers usually do.
    """
    lines, candidates = [], 0
    for line in offer.splitlines():
        if line.startswith("a=candidate:"):
            candidates += 1
            if candidates > MAX_CANDIDATES or ".local " in line:
                continue
        if line != "a=end-of-candidates":
            lines.append(line)
    return "\r\n".join(lines) + "\r\n"
