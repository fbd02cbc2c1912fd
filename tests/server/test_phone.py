"""Telephone calls on the wire, as Twilio and Asterisk document their protocols, over real sockets."""

import base64
import json
import logging
import socket
import struct
import time
import uuid

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from speechgpt2.errors import UserError
from speechgpt2.server.audio_formats import WireDecoder, WireEncoder
from speechgpt2.server.audiosocket import AudioSocketSerializer
from speechgpt2.server.config import LimitsConfig, ServerConfig, split_address
from speechgpt2.server.schema import ProtocolError
from tests.server.conftest import serving, silence, voice

KEY = "a-long-secret"
PERSONA = "assistant"


@pytest.fixture(scope="module")
def server():
    with serving(audiosocket="127.0.0.1:0") as running:
        yield running


# Twilio


class Twilio:
    """The side of Twilio: sends what the person says, and plays what it gets, at once or when told."""

    def __init__(self, socket, **parameters):
        self.socket, self.received = socket, []
        self.sequence = 0
        self.send(event="connected", protocol="Call", version="1.0.0")
        media = {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}
        start = {"streamSid": "MZ1", "accountSid": "AC1", "callSid": "CA1", "tracks": ["inbound"], "mediaFormat": media}
        self.send(event="start", start=start | {"customParameters": parameters}, streamSid="MZ1")

    def send(self, **message):
        self.sequence += 1
        self.socket.send(json.dumps({"sequenceNumber": str(self.sequence), **message}))

    def say(self, pcm, track="inbound"):
        data = WireEncoder("audio/pcmu").push(pcm)
        for start in range(0, len(data), 160):
            media = {
                "track": track,
                "chunk": "1",
                "timestamp": "0",
                "payload": base64.b64encode(data[start : start + 160]).decode(),
            }
            self.send(event="media", media=media, streamSid="MZ1")

    def next(self, seconds=10.0):
        message = json.loads(self.socket.recv(timeout=seconds))
        assert message["streamSid"] == "MZ1"
        self.received.append(message)
        return message

    def until(self, event):
        while (message := self.next())["event"] != event:
            pass
        return message

    def play(self, message):
        """Report that a mark has been reached."""
        self.send(event="mark", mark=message["mark"], streamSid="MZ1")

    @property
    def seconds(self):
        """How much audio has come."""
        return sum(len(base64.b64decode(m["media"]["payload"])) for m in self.received if m["event"] == "media") / 8000


def open_twilio(server, **options):
    return connect(f"ws://127.0.0.1:{server.port}/v1/twilio", proxy=None, **options)


def sessions(server):
    return server.engine.open_sessions


def reply(server):
    """The model's memory of its latest reply."""
    return [text for text in sessions(server)[-1].memory.values() if text.startswith("assistant")][-1]


def test_twilio_call_is_answered_in_mu_law(server):
    with open_twilio(server) as socket:
        call = Twilio(socket)
        call.say(np.concatenate([voice(0.4), silence(0.8)]))
        media, mark = call.next(), call.next()
        assert (media["event"], mark["event"]) == ("media", "mark")
        pcm = WireDecoder("audio/pcmu").push(base64.b64decode(media["media"]["payload"]))
        assert np.abs(pcm).max() > 0.1
        words = len(reply(server).split()) - 1
        while call.seconds < 0.12 * words:
            if (message := call.next())["event"] == "mark":
                call.play(message)
            words = len(reply(server).split()) - 1
        assert sessions(server)[-1].memory[1] == "user: 0.9 s of speech"
        call.send(event="stop", stop={"accountSid": "AC1", "callSid": "CA1"}, streamSid="MZ1")
        with pytest.raises(ConnectionClosed):
            while True:
                call.next()
    server.wait(lambda: not sessions(server))


def test_twilio_interruption_clears_and_cuts_memory_to_the_marks(server):
    with open_twilio(server) as socket:
        call = Twilio(socket)
        call.say(np.concatenate([voice(0.4), silence(0.6)]))
        for _ in range(4):  # Twilio has four pieces of 120 ms, and has played two of them
            mark = call.until("mark")
            if len([m for m in call.received if m["event"] == "mark"]) <= 2:
                call.play(mark)
        time.sleep(0.8)  # the dialogue believes that more was played
        call.say(voice(0.3))
        call.until("clear")
        for message in [m for m in call.received if m["event"] == "mark"][2:]:
            call.play(message)  # Twilio returns the marks of what it has dropped
        server.wait(lambda: len(sessions(server)[-1].memory[2].split()) <= 3)
        assert reply(server) == "assistant: you said"  # the words of 240 ms
    server.wait(lambda: not sessions(server))


def test_twilio_interruption_after_the_last_audio_was_made(server):
    with open_twilio(server) as socket:
        call = Twilio(socket)
        call.say(np.concatenate([voice(0.4), silence(0.6)]))
        server.wait(lambda: sessions(server) and sessions(server)[-1].memory.get(2, "").endswith("to hear"), 20)
        marks = [call.until("mark") for _ in range(3)]
        call.play(marks[0])
        time.sleep(0.5)  # the dialogue believes that all was played
        call.say(voice(0.3))
        call.until("clear")
        server.wait(lambda: len(reply(server).split()) <= 3)
    server.wait(lambda: not sessions(server))


def test_twilio_other_track_and_digits_have_no_effect(server, caplog):
    caplog.set_level(logging.INFO, "sg2.realtime")
    with open_twilio(server) as socket:
        call = Twilio(socket)
        call.say(np.concatenate([voice(0.4), silence(0.6)]), track="outbound")
        call.send(event="dtmf", dtmf={"track": "inbound_track", "digit": "7"}, streamSid="MZ1")
        call.send(event="unheard-of", streamSid="MZ1")
        call.say(np.concatenate([voice(0.4), silence(0.6)]))
        call.until("media")
        assert len(sessions(server)[-1].memory) == 2
    assert "a digit has no effect" in caplog.text
    assert any("unheard-of" in str(getattr(record, "fields", "")) for record in caplog.records)


def test_twilio_key_and_settings_are_parameters(caplog):
    with serving(api_keys=(KEY,)) as server:
        with open_twilio(server) as socket:
            Twilio(socket, key="wrong-key-000")
            with pytest.raises(ConnectionClosed) as closed:
                socket.recv(timeout=10)
            assert closed.value.rcvd.code == 1008 and "API key" in closed.value.rcvd.reason
        with open_twilio(server) as socket:
            call = Twilio(socket, key=KEY, instructions="be brief", customer="Ada")
            server.wait(lambda: sessions(server))
            assert sessions(server)[-1].settings.instructions == "be brief"
            call.send(event="stop", streamSid="MZ1")
        assert "parameters of a stream without effect: customer" in caplog.text
        with open_twilio(server, additional_headers={"Authorization": f"Bearer {KEY}"}) as socket:
            Twilio(socket)
            server.wait(lambda: sessions(server))


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"event": "media", "media": {"payload": ""}}, "begins with the messages connected and start"),
        ({"event": "start", "start": {"streamSid": "MZ1", "mediaFormat": {"encoding": "audio/ogg"}}}, "audio/x-mulaw"),
        ({"event": "start", "start": {"streamSid": "M", "customParameters": {"voice": "nobody"}}}, "nobody"),
    ],
)
def test_twilio_refuses_what_it_cannot_serve(server, message, reason):
    with open_twilio(server) as socket:
        socket.send(json.dumps(message))
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=10)
        assert closed.value.rcvd.code == 1008 and reason in closed.value.rcvd.reason


def test_twilio_full_server():
    with serving(slots=1) as server, open_twilio(server) as first:
        Twilio(first)
        server.wait(lambda: sessions(server), 20)
        with open_twilio(server) as second:
            Twilio(second)
            with pytest.raises(ConnectionClosed) as closed:
                second.recv(timeout=10)
            assert closed.value.rcvd.code == 1013


def test_twilio_silent_client():
    with serving(limits=LimitsConfig(first_message_seconds=0.5)) as server, open_twilio(server) as silent:
        with pytest.raises(ConnectionClosed) as closed:
            silent.recv(timeout=10)
        assert closed.value.rcvd.code == 1008 and "0 s" in closed.value.rcvd.reason


def test_persona_greets(monkeypatch):
    from speechgpt2.persona import load_persona

    greeting = load_persona(PERSONA).greeting
    with serving(audiosocket="127.0.0.1:0", persona=PERSONA) as server, open_twilio(server) as socket:
        Twilio(socket).until("media")
        first = greeting.split()[0]
        server.wait(lambda: reply(server).startswith(f"assistant: {first}"))


# Asterisk


class Asterisk:
    """The side of Asterisk."""

    def __init__(self, server, first=None):
        self.socket = socket.create_connection(("127.0.0.1", port_of(server)), timeout=10)
        self.stream = self.socket.makefile("rb")
        self.id = uuid.uuid4()
        self.send(0x01, self.id.bytes if first is None else first)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stream.close()
        self.socket.close()

    def send(self, kind, payload=b""):
        self.socket.sendall(struct.pack(">BH", kind, len(payload)) + payload)

    def say(self, pcm):
        data = WireEncoder("audio/pcm;rate=8000").push(pcm)
        for start in range(0, len(data), 320):
            self.send(0x10, data[start : start + 320])

    def next(self):
        """Return kind and payload of the next frame; None at the end."""
        header = self.stream.read(3)
        if not header:
            return None
        kind, size = struct.unpack(">BH", header)
        return kind, self.stream.read(size)

    def audio(self):
        kind, payload = self.next()
        assert kind == 0x10 and len(payload) == 320
        return np.abs(np.frombuffer(payload, np.int16)).max()

    def until_loud(self):
        while self.audio() < 2000:
            pass

    def until_quiet(self):
        """Wait for five frames of silence."""
        quiet = 0
        while quiet < 5:
            quiet = quiet + 1 if self.audio() < 200 else 0


def port_of(server):
    return next(protocol.port for protocol in server.app.protocols if getattr(protocol, "port", 0))


def test_asterisk_call_is_answered_in_real_time(server, caplog):
    caplog.set_level(logging.INFO, "sg2.realtime")
    with Asterisk(server) as call:
        call.say(np.concatenate([voice(0.4), silence(0.6)]))
        call.until_loud()
        start = time.monotonic()
        for _ in range(25):
            call.audio()
        assert time.monotonic() - start > 0.3  # half a second of audio does not come at once
        call.send(0x03, b"5")
        call.send(0x12, bytes(640))
        call.send(0x00)
        server.wait(lambda: not sessions(server))
    assert any(str(call.id) in str(getattr(record, "fields", "")) for record in caplog.records)
    assert "a digit has no effect" in caplog.text
    assert any("slin" in str(getattr(record, "fields", "")) for record in caplog.records)


def test_asterisk_interruption_stops_the_audio(server):
    with Asterisk(server) as call:
        call.say(np.concatenate([voice(0.4), silence(0.6)]))
        call.until_loud()
        call.say(voice(0.3))
        call.until_quiet()
        assert len(reply(server).split()) < 12
    server.wait(lambda: not sessions(server))


def test_asterisk_missing_audio_counts_as_silence(server):
    with Asterisk(server) as call:
        call.say(voice(0.4))  # and then nothing: the channel suppresses silence
        call.until_loud()


def test_asterisk_gets_a_hang_up(server):
    with serving(slots=1, audiosocket="127.0.0.1:0") as small, Asterisk(small) as first:
        first.audio()
        with Asterisk(small) as second:
            assert second.next() == (0x00, b"") and second.next() is None
        small.server.servers[0].get_loop().call_soon_threadsafe(sessions_close, small)
        while (frame := first.next())[0] == 0x10:
            pass
        assert frame == (0x00, b"")
    with Asterisk(server, first=b"short") as call:
        assert call.next() == (0x00, b"")


def sessions_close(server):
    for session in server.app.gateway.sessions:
        session.drain()


def test_frames_that_are_not_understood():
    deserialize = AudioSocketSerializer().deserialize
    for kind, text in ((0xFF, "reports the error 0x02"), (0x13, "8 kHz"), (0x42, "kind 0x42 is unknown")):
        with pytest.raises(ProtocolError, match=text):
            deserialize(struct.pack(">BH", kind, 1) + b"\x02")


def test_address_of_a_protocol_without_keys():
    assert split_address("[::1]:9092") == ("::1", 9092)
    for wrong in ("9092", "localhost", "host:99999", "host:x"):
        with pytest.raises(UserError, match=r"expected HOST:PORT"):
            split_address(wrong)
    with pytest.raises(UserError, match="audiosocket has no API keys"):
        ServerConfig(audiosocket="0.0.0.0:9092", api_keys=(KEY,))
    ServerConfig(audiosocket="0.0.0.0:9092", api_keys=(KEY,), allow_unauthenticated=True)
