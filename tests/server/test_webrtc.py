"""Realtime over WebRTC, with aiortc as the client, over local sockets."""

import asyncio
import contextlib
import json
import sys
import time
import urllib.error
import urllib.request
from fractions import Fraction

import numpy as np
import pytest

from speechgpt2 import audio
from speechgpt2.server.config import LimitsConfig
from speechgpt2.server.playout import FRAME, PlayoutBuffer
from speechgpt2.server.response import RealtimeResponse
from speechgpt2.server.webrtc_calls import RealtimeCalls
from tests import needs
from tests.server.browser import Browser
from tests.server.conftest import serving, silence, voice
from tests.server.events import checked

aiortc = needs.module("aiortc", "webrtc")
KEY = {"Authorization": "Bearer a-good-key"}
QUICK = {"audio": {"input": {"turn_detection": {"type": "server_vad", "silence_duration_ms": 100}}}}
LOUD = 0.05  # of an answer's tone, whose peak is 0.2


@pytest.fixture(autouse=True)
def loopback(monkeypatch):
    """Both sides meet at 127.0.0.1, whatever networks there are."""
    monkeypatch.setattr("aioice.ice.get_host_addresses", lambda use_ipv4, use_ipv6: ["127.0.0.1"])


class Microphone(aiortc.MediaStreamTrack):
    """What was said, and silence after it, in real time."""

    kind = "audio"

    def __init__(self):
        super().__init__()
        self.waiting, self.count, self.began = np.zeros(0, np.float32), 0, time.monotonic()

    def say(self, *pieces):
        self.waiting = np.concatenate([self.waiting, *pieces])

    async def recv(self):
        from av import AudioFrame

        await asyncio.sleep(self.began + self.count * 0.02 - time.monotonic())
        pcm, self.waiting = self.waiting[:480], self.waiting[480:]
        frame = AudioFrame(format="s16", layout="mono", samples=480)
        frame.planes[0].update(audio.to_pcm16(np.pad(pcm, (0, 480 - len(pcm)))))
        frame.sample_rate, frame.time_base, frame.pts = 24_000, Fraction(1, 24_000), self.count * 480
        self.count += 1
        return frame


class Client:
    """One call: `events` that came, each with the time, and the `frames` received, frames of 20 ms at 48 kHz."""

    def __init__(self):
        self.connection = aiortc.RTCPeerConnection(aiortc.RTCConfiguration(iceServers=[]))
        self.microphone = Microphone()
        self.connection.addTrack(self.microphone)
        self.channel = self.connection.createDataChannel("oai-events")
        self.channel.on("message", self._take)
        self.connection.on("track", self._listen)
        self.queue, self.events, self.frames = asyncio.Queue(), [], []
        self.closed = asyncio.Event()
        self.channel.on("close", self.closed.set)

    def _take(self, message):
        event = checked(json.loads(message))
        self.events.append((time.monotonic(), event))
        self.queue.put_nowait(event)

    def _listen(self, track):
        self.listening = asyncio.ensure_future(self._receive(track))

    async def _receive(self, track):
        with contextlib.suppress(aiortc.mediastreams.MediaStreamError):
            while True:
                frame = await track.recv()
                pcm = frame.to_ndarray().reshape(-1, len(frame.layout.channels)).mean(axis=1) / 32_768
                self.frames.append((time.monotonic(), pcm))

    async def offer(self):
        await self.connection.setLocalDescription(await self.connection.createOffer())
        return self.connection.localDescription.sdp

    async def accept(self, answer):
        await self.connection.setRemoteDescription(aiortc.RTCSessionDescription(answer, "answer"))
        assert (await self.next())["type"] == "session.created"

    def send(self, type, **fields):
        self.channel.send(json.dumps({"type": type, **fields}))

    async def next(self, seconds=10.0):
        return await asyncio.wait_for(self.queue.get(), seconds)

    async def until(self, type, seconds=10.0):
        events = [await self.next(seconds)]
        while events[-1]["type"] != type:
            assert type == "error" or events[-1]["type"] != "error", events[-1]
            events.append(await self.next(seconds))
        return events

    async def update(self, **session):
        self.send("session.update", session={"type": "realtime", **session})
        return (await self.until("session.updated"))[-1]["session"]

    def write(self, text):
        content = [{"type": "input_text", "text": text}]
        self.send("conversation.item.create", item={"type": "message", "role": "user", "content": content})
        self.send("response.create")

    def when(self, type):
        return next(at for at, event in self.events if event["type"] == type)

    def loud(self):
        """Return the times of loud frames."""
        return [at for at, pcm in self.frames if abs(pcm).max() > LOUD]


async def post(url, body=b"", **headers):
    """Status, headers and body of what is answered."""

    def ask():
        request = urllib.request.Request(url, body, {k.replace("_", "-"): v for k, v in headers.items()})
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status, answer.headers, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read().decode()

    return await asyncio.to_thread(ask)


async def call(served, offer, query="", **headers):
    headers = {"Content_Type": "application/sdp", **headers}
    return await post(f"{served.http}/v1/realtime/calls{query}", offer.encode(), **headers)


@contextlib.asynccontextmanager
async def calling(served, query="", **headers):
    """`async with calling(served) as client: …`, whose `url` is the call's."""
    client = Client()
    try:
        status, given, answer = await call(served, await client.offer(), query, **headers)
        assert status == 201 and given["Content-Type"].startswith("application/sdp"), answer
        assert given["Location"].startswith("/v1/realtime/calls/rtc_")
        client.url = served.http + given["Location"]
        await client.accept(answer)
        yield client
    finally:
        await client.connection.close()


def active_calls(served):
    (calls,) = [protocol for protocol in served.app.protocols if isinstance(protocol, RealtimeCalls)]
    return calls.active


async def free(served, seconds=5.0):
    end = time.monotonic() + seconds
    while served.app.gateway.admission.active or served.engine.open_sessions or active_calls(served):
        assert time.monotonic() < end, "a slot was not released"
        await asyncio.sleep(0.02)


def types(events):
    return [event["type"] for event in events]


def one(events, type):
    """The only event of this type."""
    (found,) = [event for event in events if event["type"] == type]
    return found


def test_spoken_turn(served):
    async def scenario():
        async with calling(served, "?model=gpt-realtime") as client:
            assert client.events[0][1]["session"]["model"] == "mini"
            await client.update(**QUICK, max_output_tokens=5)
            client.microphone.say(voice(0.4))
            events = await client.until("output_audio_buffer.stopped")
            assert "response.output_audio.delta" not in types(events)
            order = [
                "input_audio_buffer.speech_started",
                "input_audio_buffer.speech_stopped",
                "input_audio_buffer.committed",
                "response.content_part.added",
                "output_audio_buffer.started",
                "response.done",
                "output_audio_buffer.stopped",
            ]
            assert [name for name in types(events) if name in order] == order
            done = one(events, "response.done")["response"]
            assert events[-1]["response_id"] == one(events, "output_audio_buffer.started")["response_id"] == done["id"]
            assert done["output"][0]["content"][0]["transcript"].startswith("you said 0.")
            await asyncio.sleep(0.3)
            loud = client.loud()
            assert 0.5 < len(loud) * 0.02 < 0.72 and 0.5 < loud[-1] - loud[0] < 0.8  # 5 × 120 ms, in real time
            tone = np.concatenate([pcm for at, pcm in client.frames if at in loud[:6]])
            assert np.argmax(abs(np.fft.rfft(tone))) * 48_000 / len(tone) == pytest.approx(300, abs=15)
        await free(served)

    asyncio.run(scenario())


def test_barge_in_drops_pending_audio(served):
    async def scenario():
        async with calling(served) as client:
            await client.update(**QUICK)
            client.write("slow, tell me all")
            await client.until("output_audio_buffer.started")
            await asyncio.sleep(0.7)
            client.microphone.say(voice(0.3))
            events = await client.until("conversation.item.truncated")
            for name in ("input_audio_buffer.speech_started", "output_audio_buffer.cleared", "response.done"):
                assert name in types(events)
            done = one(events, "response.done")["response"]
            assert done["status"] == "cancelled" and done["status_details"]["reason"] == "turn_detected"
            assert one(events, "output_audio_buffer.cleared")["response_id"] == done["id"]
            cleared = client.when("output_audio_buffer.cleared")
            memory = served.engine.sessions[-1].memory
            played_ms = events[-1]["audio_end_ms"]
            said = next(text for text in memory.values() if text.startswith("assistant"))
            assert len(said.split()) - 1 == played_ms // 120  # to what was sent, to the frame
            await asyncio.sleep(0.2)
            loud = [at for at in client.loud() if at < cleared + 0.2]
            assert loud[-1] - cleared < 0.15  # the client's own buffer holds 80 ms
            assert played_ms == pytest.approx(20 * len(loud), abs=60)
            item = done["output"][0]["id"]
            assert item == events[-1]["item_id"]
            client.send("conversation.item.retrieve", item_id=item)
            part = (await client.until("conversation.item.retrieved"))[-1]["item"]["content"][0]
            assert not part["transcript"]

    asyncio.run(scenario())


def test_client_clears_output_audio(served):
    async def scenario():
        async with calling(served) as client:
            client.send("output_audio_buffer.clear")  # there is nothing
            for cancels in (True, False):
                client.write("slow, tell me all")
                started = (await client.until("output_audio_buffer.started"))[-1]
                await asyncio.sleep(0.3)
                if cancels:
                    client.send("response.cancel")
                client.send("output_audio_buffer.clear")
                events = await client.until("conversation.item.truncated")
                assert one(events, "output_audio_buffer.cleared")["response_id"] == started["response_id"]
                done = one(events, "response.done")["response"]
                assert done["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}
                assert 200 <= events[-1]["audio_end_ms"] <= 500

    asyncio.run(scenario())


def test_offer_as_sdp_and_as_form():
    openai = needs.module("openai", "dev")

    async def scenario(served):
        secrets = f"{served.http}/v1/realtime/client_secrets"
        wanted = {"session": {"type": "realtime", "instructions": "Rhyme."}}
        _, _, given = await post(secrets, json.dumps(wanted).encode(), **KEY)
        secret = json.loads(given)["value"]
        async with calling(served, Authorization=f"Bearer {secret}") as client:
            assert client.events[0][1]["session"]["instructions"] == "Rhyme."
        await free(served)
        client = Client()
        offer = await client.offer()
        async with openai.AsyncOpenAI(api_key="a-good-key", base_url=f"{served.http}/v1", max_retries=0) as api:
            answer = await api.realtime.calls.create(sdp=offer, session={**wanted["session"], **QUICK})
            assert answer.response.status_code == 201
            await client.accept(answer.text)
            session = client.events[0][1]["session"]
            assert session["instructions"] == "Rhyme."
            assert session["audio"]["input"]["turn_detection"]["silence_duration_ms"] == 100
            await api.realtime.calls.hangup(answer.response.headers["location"].rpartition("/")[2])
        assert not served.app.gateway.admission.active
        await asyncio.wait_for(client.closed.wait(), 5)
        await client.connection.close()

    with serving(api_keys=("a-good-key",)) as served:
        asyncio.run(scenario(served))


def test_offer_without_candidates(served):
    async def scenario():
        client = Client()
        offer = "".join(
            line
            for line in (await client.offer()).splitlines(keepends=True)
            if not line.startswith(("a=candidate", "a=end-of-candidates"))
        )
        offer += "a=candidate:1 1 udp 2113937151 0a1b.local 50000 typ host\r\na=end-of-candidates\r\n"
        status, _, answer = await call(served, offer)
        assert status == 201
        await client.accept(answer)
        await client.connection.close()
        await free(served)

    asyncio.run(scenario())


def test_rejections_and_hang_up():
    async def scenario(served):
        offer = await Client().offer()

        async def rejection(**headers):
            status, given, body = await call(served, offer, **{**KEY, **headers})
            return status, json.loads(body)["error"]["code"], given

        assert (await rejection(Authorization="Bearer a-wrong-key"))[:2] == (401, "invalid_api_key")
        assert (await rejection(Origin="https://evil.example"))[:2] == (403, "invalid_origin")
        assert (await rejection(Content_Type="text/plain"))[:2] == (415, "unsupported_media_type")
        async with calling(served, **KEY) as client:
            began = time.monotonic()
            status, code, given = await rejection(Origin="https://app.example")
            assert (status, code) == (503, "server_overloaded") and int(given["Retry-After"]) > 0
            assert given["Access-Control-Allow-Origin"] == "https://app.example"
            assert time.monotonic() - began < 1
            status, _, _ = await post(f"{served.http}/v1/realtime/calls/rtc_none/hangup", **KEY)
            assert status == 404
            assert (await post(f"{client.url}/hangup"))[0] == 401
            assert (await post(f"{client.url}/hangup", Authorization="Bearer another-key"))[0] == 404
            assert (await post(f"{client.url}/hangup", **KEY))[0] == 200
            await free(served, 0.1)
            assert (await post(f"{client.url}/hangup", **KEY))[0] == 404
        text = served.app.gateway.metrics.exposition().decode()
        for reason, times in (("full", 1), ("invalid_key", 2), ("invalid_origin", 1)):
            assert f'sg2_rejections_total{{reason="{reason}"}} {times}.0' in text
        assert 'sg2_sessions_closed_total{code="1000"} 1.0' in text

    with serving(slots=1, api_keys=("a-good-key", "another-key"), allowed_origins=("https://app.example",)) as served:
        asyncio.run(scenario(served))


@pytest.mark.parametrize("bad", ["", "hello", "audio only", "no opus", "no fingerprint"])
def test_invalid_offers(served, bad):
    async def scenario():
        offer = await Client().offer()
        if bad == "audio only":
            offer = offer[: offer.index("m=application")]
        elif bad == "no opus":
            offer = offer.replace("opus/48000/2", "speex/48000/2")
        elif bad == "no fingerprint":
            offer = "\r\n".join(line for line in offer.splitlines() if not line.startswith("a=fingerprint")) + "\r\n"
        else:
            offer = bad
        status, _, body = await call(served, offer)
        assert status == 400 and json.loads(body)["error"]["code"] == "invalid_offer"
        await free(served)

    asyncio.run(scenario())


def test_slots_are_released(monkeypatch):
    """By a client that leaves, and for one that does not come."""
    from speechgpt2.server import webrtc_peer

    async def scenario(served):
        async with calling(served) as client:
            client.write("slow")
            await client.until("output_audio_buffer.started")
        await free(served)
        monkeypatch.setattr(webrtc_peer, "CONNECT_TIMEOUT", 0.3)
        assert (await call(served, await Client().offer()))[0] == 201
        assert (await call(served, await Client().offer()))[0] == 503
        await free(served)

    with serving(slots=1) as served:
        asyncio.run(scenario(served))


def test_session_limit_and_drain():
    async def expires(served):
        async with calling(served) as client:
            assert (await client.until("error"))[-1]["error"]["code"] == "session_expired"
            await asyncio.wait_for(client.closed.wait(), 5)

    with serving(limits=LimitsConfig(session_seconds=1.0)) as served:
        asyncio.run(expires(served))

    async def drains(served):
        async with calling(served) as client:
            await client.update(max_output_tokens=5)
            client.write("tell me")
            await client.until("output_audio_buffer.started")
            served.server.servers[0].get_loop().call_soon_threadsafe(lambda: asyncio.ensure_future(served.app.drain()))
            await client.until("output_audio_buffer.stopped")
            await asyncio.wait_for(client.closed.wait(), 5)
            assert len(client.loud()) * 0.02 > 0.5
            status, _, body = await call(served, await Client().offer())
            assert status == 503 and "shutting down" in body

    with serving() as served:
        asyncio.run(drains(served))


def test_missing_extra_is_reported(served, monkeypatch):
    monkeypatch.setitem(sys.modules, "aiortc", None)
    monkeypatch.delitem(sys.modules, "speechgpt2.server.webrtc_peer", raising=False)
    monkeypatch.delattr("speechgpt2.server.webrtc_peer", raising=False)
    status, _, body = asyncio.run(call(served, "v=0"))
    assert status == 501 and "pip install 'speechgpt2[webrtc]'" in json.loads(body)["error"]["message"]


class RecordingListener:
    def __init__(self):
        self.events = []

    def playout_started(self, response):
        self.events.append(("started", response))

    def playout_stopped(self, response):
        self.events.append(("stopped", response))


def test_playout_of_two_responses():
    listener = RecordingListener()
    playout = PlayoutBuffer(listener)
    first, second = (RealtimeResponse.__new__(RealtimeResponse) for _ in range(2))
    assert not playout.next_frame().any() and not playout.busy
    playout.push(first, voice(0.05))
    playout.finish(first)
    playout.push(second, voice(0.12))
    frames = [playout.next_frame() for _ in range(6)]
    assert not frames[0].any() and not frames[1].any() and all(frame.any() for frame in frames[2:])
    assert listener.events == [("started", first), ("stopped", first), ("started", second)]
    (cut,) = playout.clear()
    assert cut.response is second and cut.sent == FRAME and not playout.busy
    playout.next_frame()
    assert not playout.next_frame().any()


# what a page does that was written for the protocol: the offer is sent as it is, before any address is known
PAGE = """(async () => {
    const peer = window.peer = new RTCPeerConnection();
    const player = new Audio();
    peer.ontrack = (event) => { player.srcObject = event.streams[0]; player.play(); };
    const microphone = await navigator.mediaDevices.getUserMedia({ audio: true });
    peer.addTrack(microphone.getTracks()[0], microphone);
    window.received = [];
    const events = peer.createDataChannel('oai-events');
    events.addEventListener('message', (message) => received.push(JSON.parse(message.data)));
    await peer.setLocalDescription(await peer.createOffer());
    const answer = await fetch('/v1/realtime/calls?model=mini', {
        method: 'POST', body: peer.localDescription.sdp,
        headers: { Authorization: 'Bearer any', 'Content-Type': 'application/sdp' },
    });
    await peer.setRemoteDescription({ type: 'answer', sdp: await answer.text() });
    return answer.status;
})()"""
ENERGY = """(async () => {
    const found = [...(await peer.getStats()).values()].find((report) => report.type === 'inbound-rtp');
    return found ? found.totalAudioEnergy : 0;
})()"""


@needs.tool("chromium")
def test_page_that_uses_the_protocol(tmp_path, served, monkeypatch):
    monkeypatch.undo()  # a browser has no loopback addresses
    talk = [silence(1.5), voice(0.6), silence(2.5), voice(0.7), silence(20.0)]
    audio.save(tmp_path / "microphone.wav", np.concatenate(talk))
    with Browser(tmp_path, tmp_path / "microphone.wav") as page:
        page.open(served.http)
        assert page.evaluate(PAGE) == 201
        page.until("received.some((event) => event.type === 'output_audio_buffer.started')")
        page.until("received.some((event) => event.type === 'output_audio_buffer.cleared')")  # the second voice
        assert page.evaluate(ENERGY) > 0.001
        truncated = page.until("received.find((event) => event.type === 'conversation.item.truncated')")
        assert 300 < truncated["audio_end_ms"] < 3000
        page.evaluate("peer.close()")
        served.wait(lambda: not served.engine.open_sessions)
