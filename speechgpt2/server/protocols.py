"""The wire protocols of the server. A new protocol is one class, registered in `PROTOCOLS`."""

from __future__ import annotations

from speechgpt2.server.audiosocket import AudioSocket
from speechgpt2.server.gateway import WireProtocol
from speechgpt2.server.realtime_websocket import RealtimeWebSocket
from speechgpt2.server.responses_api import ResponsesApi
from speechgpt2.server.rest import RestApi
from speechgpt2.server.sessions_api import SessionsApi
from speechgpt2.server.speech_api import SpeechApi
from speechgpt2.server.transcription_api import TranscriptionApi
from speechgpt2.server.twilio import TwilioMediaStreams
from speechgpt2.server.webrtc_calls import RealtimeCalls
from speechgpt2.server.wyoming import Wyoming

PROTOCOLS: tuple[type[WireProtocol], ...] = (
    RealtimeWebSocket,
    RealtimeCalls,
    RestApi,
    SpeechApi,
    TranscriptionApi,
    ResponsesApi,
    TwilioMediaStreams,
    AudioSocket,
    Wyoming,
    SessionsApi,
)
