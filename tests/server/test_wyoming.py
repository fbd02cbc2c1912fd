"""Home Assistant's protocol, with the client of the package `wyoming` over real sockets."""

import asyncio
import contextlib
import json
import logging
import socket

import numpy as np
import pytest

from speechgpt2 import audio
from speechgpt2.duplex.protocol import EngineVoice
from speechgpt2.errors import MissingDependency
from speechgpt2.server import wyoming as wyoming_server
from speechgpt2.server.config import LimitsConfig
from tests import needs
from tests.server.conftest import serving, voice
from tests.server.fake import FakeEngine

needs.module("wyoming.client", "wyoming")

from wyoming.asr import Transcribe, Transcript
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.error import Error
from wyoming.handle import Handled, NotHandled
from wyoming.info import Describe, Info, SelectProgram
from wyoming.ping import Ping, Pong
from wyoming.tts import (
    Synthesize,
    SynthesizeChunk,
    SynthesizeStart,
    SynthesizeStop,
    SynthesizeStopped,
    SynthesizeVoice,
)

from speechgpt2.server.wyoming_connection import RequestAudio, StreamedText

VOICES = (EngineVoice("anna", "Hello.", default=True), EngineVoice("ben", "Hi."))


@pytest.fixture(scope="module")
def server():
    with serving(FakeEngine(4, VOICES), wyoming="127.0.0.1:0") as running:
        yield running


def port_of(server):
    return next(protocol.port for protocol in server.app.protocols if getattr(protocol, "port", 0))


def talk(server, *events, until):
    """Send events on a connection of their own; return what comes up to the event `until`."""

    async def run():
        found = []
        async with AsyncTcpClient("127.0.0.1", port_of(server)) as client:
            for event in events:
                await client.write_event(event.event())
            while not found or found[-1].type not in (until, "error"):
                event = await client.read_event()
                assert event is not None, "the server has closed the connection"
                found.append(event)
        return found

    return asyncio.run(asyncio.wait_for(run(), 30))


def spoken(pcm, rate=16_000, channels=1):
    """The events of a recording, as Home Assistant sends them."""
    pcm = audio.resample(pcm, 24_000, rate)
    data = audio.to_pcm16(np.repeat(pcm, channels))
    size = 2048 * channels
    chunks = [AudioChunk(rate, 2, channels, data[start : start + size]) for start in range(0, len(data), size)]
    return [AudioStart(rate, 2, channels), *chunks, AudioStop()]


def samples(events):
    return sum(len(event.payload) // 2 for event in events if AudioChunk.is_type(event.type))


def test_describe_offers_three_programs(server):
    info = Info.from_event(talk(server, Describe(), until="info")[-1])
    (asr,), (tts,), (handle,) = info.asr, info.tts, info.handle
    assert asr.models[0].name == handle.models[0].name == "mini" and asr.models[0].languages == ["en", "zh"]
    assert [voice.name for voice in tts.voices] == ["anna", "ben"] and tts.supports_synthesize_streaming
    assert asr.installed and tts.installed and handle.installed
    event = talk(server, SelectProgram("speechgpt2"), Ping("x"), until="pong")[-1]
    assert Pong.from_event(event).text == "x"


@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (48_000, 2)])
def test_transcription(server, rate, channels):
    events = talk(server, Transcribe(language="en"), *spoken(voice(0.8), rate, channels), until="transcript")
    assert Transcript.from_event(events[-1]).text == "0.8 s of speech"
    server.wait(lambda: not server.engine.open_sessions)


def test_transcription_without_audio_is_empty(server):
    events = talk(server, Transcribe(), AudioStart(16_000, 2, 1), AudioStop(), until="transcript")
    assert Transcript.from_event(events[-1]).text == ""


def test_synthesis_sentence_by_sentence(server):
    request = Synthesize("One two. Three four five.", SynthesizeVoice(name="ben"))
    events = talk(server, request, until="audio-stop")
    start = AudioStart.from_event(events[0])
    assert (start.rate, start.width, start.channels) == (24_000, 2, 1)
    assert samples(events) == 5 * 2880  # the fake reads a word in 120 ms
    assert server.engine.sessions[-1].settings.voice == "ben"
    assert [event.type for event in events].count("audio-start") == 1


def test_streamed_synthesis_begins_with_the_first_sentence(server):
    async def run():
        async with AsyncTcpClient("127.0.0.1", port_of(server)) as client:
            await client.write_event(SynthesizeStart().event())
            for text in ("One two", ". Thr", "ee four"):
                await client.write_event(SynthesizeChunk(text).event())
            events = [await client.read_event() for _ in range(3)]
            assert [event.type for event in events] == ["audio-start", "audio-chunk", "audio-chunk"]
            for event in (SynthesizeChunk(" five."), Synthesize("One two. Three four five."), SynthesizeStop()):
                await client.write_event(event.event())
            while not SynthesizeStopped.is_type(events[-1].type):
                events.append(await client.read_event())
            return events

    events = asyncio.run(asyncio.wait_for(run(), 30))
    assert samples(events) == 5 * 2880 and events[-2].type == "audio-stop"


def test_streamed_text_keeps_what_is_not_complete():
    text = StreamedText("default")
    assert text.add("Dr. Smith is") == [] and text.add(" here. And ") == ["Dr. Smith is here."]
    assert text.add("who") == [] and text.rest() == ["And who"] and text.rest() == []


def test_answer_remembers_its_conversation(server):
    context = {"conversation_id": "kitchen"}
    first = Handled.from_event(talk(server, Transcript("hello", context), until="handled")[-1])
    assert first.text.startswith("you said hello") and first.context == context
    talk(server, Transcript("again", context), until="handled")
    memory = list(server.engine.sessions[-1].memory.values())
    assert memory[0] == "user: hello" and memory[1] == f"assistant: {first.text}" and memory[2] == "user: again"
    talk(server, Transcript("elsewhere"), until="handled")
    assert next(iter(server.engine.sessions[-1].memory.values())) == "user: elsewhere"
    assert NotHandled.is_type(talk(server, Transcript(" "), until="not-handled")[-1].type)


def test_conversations_are_bounded(server, monkeypatch):
    monkeypatch.setattr(wyoming_server, "MAX_CONVERSATIONS", 2)
    for name in ("a", "b", "c"):
        talk(server, Transcript("hello", {"conversation_id": name}), until="handled")
    (protocol,) = [protocol for protocol in server.app.protocols if protocol.__class__.__name__ == "Wyoming"]
    assert list(protocol._conversations) == ["b", "c"]


@pytest.mark.parametrize(
    ("events", "text"),
    [
        ([Synthesize("Hello.", SynthesizeVoice(name="nobody"))], "There is no voice"),
        ([Synthesize("Hello.", text_format="ssml")], "text_format must be text"),
        ([Synthesize("…")], "no letters"),
        ([SelectProgram("other")], "no program"),
        ([AudioStart(16_000, 2, 1), AudioChunk(16_000, 4, 1, bytes(8))], "width 2"),
        ([AudioStart(16_000, 2, 1), AudioChunk(7, 2, 1, bytes(8))], "not 7"),
        ([AudioStart(16_000, 2, 1), AudioChunk(16_000, 2, 1, bytes(3))], "middle of a sample"),
    ],
)
def test_what_cannot_be_served_is_an_error_event(server, events, text):
    answered = talk(server, *events, until="error")
    assert text in Error.from_event(answered[-1]).text
    server.wait(lambda: not server.engine.open_sessions)


def test_recording_has_one_rate_and_a_longest_length():
    recording = RequestAudio()
    recording.add(AudioChunk(16_000, 2, 1, bytes(320)))
    for chunk, text in (
        (AudioChunk(8_000, 2, 1, b""), "one rate"),
        (AudioChunk(16_000, 2, 1, bytes(9_700_000)), "300 s"),
    ):
        with pytest.raises(Exception, match=text):
            recording.add(chunk)


def test_full_server_and_events_without_effect(caplog):
    caplog.set_level(logging.INFO, "sg2.server")
    with serving(slots=1, wyoming="127.0.0.1:0") as server:
        with server.app.gateway.admission.admit("other"):
            event = talk(server, Synthesize("Hello."), until="audio-stop")[-1]
            assert Error.from_event(event).code == "server_overloaded"
        talk(server, AudioStop(), Transcribe(language="en"), Ping(), until="pong")
    texts = [f"{record.message} {getattr(record, 'fields', '')}" for record in caplog.records]
    assert any("no effect" in text and "language" in text for text in texts)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"[]\n",
        b'{"type": 1}\n',
        b'{"type": "x", "payload_length": 1000000000000}\n',
        b'{"type": "x", "data_length": -1}\n',
        b'{"type": "x", "data_length": 2}\n[]',
        b'{"type": "' + b"x" * 100_000,
        b"[" * 5_000 + b"\n",
    ],
    ids=["http", "list", "type", "large", "negative", "data", "line", "depth"],
)
def test_bytes_that_are_no_events_end_the_connection(server, data):
    with socket.create_connection(("127.0.0.1", port_of(server)), timeout=10) as client:
        client.sendall(data)
        with contextlib.suppress(ConnectionResetError), client.makefile("rb") as stream:
            header = json.loads(stream.readline())
            assert header["type"] == "error"
            stream.read()


@pytest.mark.parametrize(
    "event",
    [{"type": "synthesize"}, {"type": "audio-chunk", "data": {"rate": "x"}}, {"type": "transcript", "data": {}}],
)
def test_wrong_fields_are_errors_and_the_connection_goes_on(server, event):
    with socket.create_connection(("127.0.0.1", port_of(server)), timeout=10) as client:
        client.sendall(json.dumps(event).encode() + b"\n" + b'{"type": "ping"}\n')
        with client.makefile("rb") as stream:
            types = []
            while "pong" not in types:
                header = json.loads(stream.readline())
                stream.read(header.get("data_length", 0))
                types.append(header["type"])
    assert types == ["error", "pong"]


def test_silent_connection_is_closed():
    limits = LimitsConfig(first_message_seconds=0.3)
    with serving(limits=limits, wyoming="127.0.0.1:0") as server:
        client = socket.create_connection(("127.0.0.1", port_of(server)), timeout=10)
        assert client.recv(10) == b""
        client.close()


def test_missing_library(monkeypatch):
    def missing(module, extra):
        raise MissingDependency(f"{module} is not installed; run: pip install 'speechgpt2[{extra}]'")

    monkeypatch.setattr(wyoming_server.extras, "require", missing)
    with pytest.raises(MissingDependency, match=r"speechgpt2\[wyoming\]"):
        wyoming_server.require_library()
