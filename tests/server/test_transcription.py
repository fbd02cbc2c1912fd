"""Transcription over REST: long recordings, the times of words, and what ends a request."""

import asyncio
import http.client
import io
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechgpt2 import long_form, word_times
from speechgpt2.errors import MissingDependency
from speechgpt2.server import long_response
from speechgpt2.server.api_errors import ApiError
from speechgpt2.server.config import LimitsConfig
from speechgpt2.server.transcription_api import TranscriptionApi
from tests import needs
from tests.server.conftest import serving, silence, voice
from tests.server.test_rest import encoded, form, talk, wav

openai = needs.module("openai", "dev")
QUESTION = Path("examples/question-1.wav")


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(api_key="none", base_url=f"{served.http}/v1", max_retries=0) as client:
        yield client


@pytest.fixture
def long_recording(monkeypatch):
    """A recording of two segments, each of which takes three heartbeats to transcribe."""

    async def transcript(self, pcm, temperature=0.0):
        await asyncio.sleep(0.35)
        return f"{len(pcm) / 24_000:.1f} s"

    monkeypatch.setattr(long_response, "HEARTBEAT", 0.1)
    monkeypatch.setattr(TranscriptionApi, "transcript", transcript)
    monkeypatch.setattr(long_form.SileroVad, "probability", lambda self, block: float(np.abs(block).max() > 0.05))
    return ("long.flac", encoded(talk(8, 2, 6, 1, 2), "FLAC"))


def post(served, recording, **fields):
    """Post a recording; returns the connection, whose response has not been read."""
    parts = [f'--x\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n' for key, value in fields.items()]
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    connection.request("POST", "/v1/audio/transcriptions", "".join(parts).encode() + form(recording), kind)
    return connection


@pytest.mark.parametrize(
    ("format", "heartbeat"),
    [("json", b" "), ("verbose_json", b" "), ("text", b" "), ("srt", b"\n"), ("vtt", b"WEBVTT\n\n")],
)
def test_response_to_long_work_begins_early(served, long_recording, format, heartbeat):
    response = post(served, long_recording[1], response_format=format).getresponse()
    assert response.status == 200 and response.read(len(heartbeat)) == heartbeat
    began = time.monotonic()
    body = response.read().decode()
    assert time.monotonic() - began > 0.3  # the second segment takes .35 s
    assert "2.4 s" in body and "1.4 s" in body
    if "json" in format:
        assert json.loads(body)["text"] == "2.4 s 1.4 s"


def test_clients_read_a_response_that_begins_early(client, long_recording):
    answer = client.audio.transcriptions.create(model="mini", file=long_recording, response_format="verbose_json")
    assert [segment.text for segment in answer.segments] == ["2.4 s", "1.4 s"]
    events = list(client.audio.transcriptions.create(model="mini", file=long_recording, stream=True))
    assert events[-1].text == "2.4 s 1.4 s"


def test_event_stream_shows_its_progress(served, long_recording):
    body = post(served, long_recording[1], stream="true").getresponse().read().decode()
    assert re.match(r": 1\d of 19 s were read\n\n", body) and "delta" in body


def test_late_failure_leaves_the_response_incomplete(served, long_recording, monkeypatch):
    async def fail(self, pcm, temperature):
        await asyncio.sleep(0.3)
        raise ApiError(500, "the model failed", "server_error")

    monkeypatch.setattr(TranscriptionApi, "transcript", fail)
    response = post(served, long_recording[1]).getresponse()
    with pytest.raises(http.client.IncompleteRead) as error:
        response.read()
    assert json.loads(error.value.partial)["error"]["message"] == "the model failed"
    served.wait(lambda: not served.app.gateway.admission.active)


@pytest.mark.parametrize("stream", ["true", "false"])
def test_decoding_ends_with_its_request(served, monkeypatch, stream):
    """A recording without speech is decoded in one go, for minutes: until the client leaves."""
    blocks = []

    def judge(self, block):
        blocks.append(len(block))
        time.sleep(0.002)
        return 0.0

    monkeypatch.setattr(long_form.SileroVad, "probability", judge)
    connection = post(served, encoded(silence(300), "FLAC"), stream=stream)
    served.wait(lambda: blocks)
    connection.close()
    served.wait(lambda: not served.app.gateway.admission.active)
    count = len(blocks)
    time.sleep(0.1)
    assert len(blocks) == count < 300 / 0.032 / 2


def test_too_large_request_is_refused_before_it_is_sent():
    with serving(limits=LimitsConfig(request_bytes=10_000)) as served:
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
        connection.putrequest("POST", "/v1/audio/transcriptions")
        connection.putheader("Content-Length", "30000000")
        connection.endheaders()
        response = connection.getresponse()
        message = json.loads(response.read())["error"]["message"]
        assert (
            response.status == 413 and "10000 bytes (limits.request_bytes)" in message and "sg2 transcribe" in message
        )


def test_too_long_recording_is_refused():
    with serving(limits=LimitsConfig(transcription_seconds=60)) as served:
        client = openai.OpenAI(api_key="none", base_url=f"{served.http}/v1", max_retries=0)
        with pytest.raises(openai.BadRequestError, match=r"longer than 60 s.*limits\.transcription_seconds.*sg2 trans"):
            client.audio.transcriptions.create(model="mini", file=("a.flac", bomb(hours=2)))


def bomb(hours):
    """A small file of many channels that decodes to hours of silence."""
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", 8_000, 8, "PCM_16", format="FLAC") as opened:
        for _ in range(hours * 60):
            opened.write(np.zeros((60 * 8_000, 8), np.int16))
    return file.getvalue()


# words


@needs.extra("synthesis", "espeakng_loader", "pypinyin")
def test_times_of_words(client, monkeypatch):
    async def transcript(self, pcm, temperature=0.0):
        return "What's three plus five?"

    monkeypatch.setattr(TranscriptionApi, "transcript", transcript)
    options = {"model": "mini", "file": QUESTION, "response_format": "verbose_json"}
    answer = client.audio.transcriptions.create(timestamp_granularities=["word"], **options)
    assert [word.word for word in answer.words] == ["What's", "three", "plus", "five"] and answer.segments is None
    times = [time for word in answer.words for time in (word.start, word.end)]
    assert times == sorted(times) and 0 <= times[0] < times[-1] <= answer.duration
    assert [word.start for word in answer.words] == pytest.approx([0.06, 0.43, 0.74, 1.02], abs=0.1)
    both = client.audio.transcriptions.create(timestamp_granularities=["word", "segment"], **options)
    assert both.words == answer.words
    assert (both.segments[0].start, both.segments[0].end) == (answer.words[0].start, answer.words[-1].end)


@needs.extra("synthesis", "espeakng_loader", "pypinyin")
def test_wrong_transcript_has_no_word_times(client, monkeypatch):
    async def transcript(self, pcm, temperature=0.0):
        return "The colour of the sky is blue, as everyone knows who looks up."

    monkeypatch.setattr(TranscriptionApi, "transcript", transcript)
    answer = client.audio.transcriptions.with_raw_response.create(
        model="mini", file=QUESTION, response_format="verbose_json", timestamp_granularities=["word"]
    )
    assert answer.parse().words == []
    assert "1 of 1 segments have no word times" in answer.http_response.json()["warnings"][0]


def test_words_are_refused_where_they_cannot_be_had(client, monkeypatch):
    def missing():
        raise MissingDependency("espeak-ng is missing: pip install 'speechgpt2[synthesis]'")

    monkeypatch.setattr(word_times, "require_aligner", missing)
    for format, message in (("json", "needs response_format verbose_json"), ("verbose_json", "espeak-ng is missing")):
        with pytest.raises(openai.BadRequestError, match=message) as error:
            client.audio.transcriptions.create(
                model="mini", file=("a.wav", wav(voice(0.5))), response_format=format, timestamp_granularities=["word"]
            )
        assert error.value.param == "timestamp_granularities"
