"""The REST interface through openai-python, and invalid requests."""

import base64
import contextlib
import http.client
import io
import json
import time

import numpy as np
import pytest
import soundfile

from speechgpt2 import audio, long_form
from speechgpt2.server.config import LimitsConfig
from speechgpt2.types import SAMPLE_RATE
from tests import media, needs
from tests.server.conftest import serving, silence, voice

openai = needs.module("openai", "dev")


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(api_key="none", base_url=f"{served.http}/v1", max_retries=0) as client:
        yield client


def wav(pcm):
    file = io.BytesIO()
    soundfile.write(file, pcm, SAMPLE_RATE, format="WAV")
    return file.getvalue()


SLOW = [{"role": "user", "content": "slow"}]
HELLO = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hello"}]


def test_models(client):
    assert [model.id for model in client.models.list()] == ["mini"]
    assert client.models.retrieve("mini").owned_by == "speechgpt2"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")


def test_written_chat(client, served):
    answer = client.chat.completions.create(model="mini", messages=HELLO)
    assert (
        answer.choices[0].message.content.startswith("you said hello and I")
        and answer.choices[0].finish_reason == "stop"
    )
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 10
    assert served.engine.sessions[-1].settings.instructions == "Be kind." and served.engine.sessions[-1].closed
    answer = client.chat.completions.create(model="mini", messages=HELLO, max_completion_tokens=2)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("you said", "length")


def test_streamed_written_chat(client):
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(model="mini", messages=HELLO, max_tokens=3, **options))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "you said hello"
    assert chunks[-2].choices[0].finish_reason == "length" and chunks[-1].usage.completion_tokens == 3


def test_spoken_chat(client, served):
    question = base64.b64encode(wav(voice(0.5))).decode()
    content = [{"type": "input_audio", "input_audio": {"data": question, "format": "wav"}}]
    answer = client.chat.completions.create(
        model="mini",
        modalities=["text", "audio"],
        audio={"voice": "alloy", "format": "wav"},
        messages=[{"role": "user", "content": content}],
        max_completion_tokens=4,
    )
    said = answer.choices[0].message.audio
    assert said.transcript == "you said 0.5 s"
    pcm, rate = soundfile.read(io.BytesIO(base64.b64decode(said.data)))
    assert (len(pcm), rate) == (4 * 2880, SAMPLE_RATE)
    again = [{"role": "user", "content": content}, {"role": "assistant", "audio": {"id": said.id}}, *HELLO[1:]]
    client.chat.completions.create(model="mini", messages=again)
    assert "assistant: you said 0.5 s" in served.engine.sessions[-1].memory.values()


@pytest.mark.parametrize("format", ["wav", "pcm16"])
def test_silence_at_the_end_of_a_question_is_cut(client, served, format):
    pcm = np.concatenate([voice(1.0), silence(3.0)])
    data = base64.b64encode(wav(pcm) if format == "wav" else audio.to_pcm16(pcm)).decode()
    content = [{"type": "input_audio", "input_audio": {"data": data, "format": format}}]
    client.chat.completions.create(model="mini", messages=[{"role": "user", "content": content}])
    assert "user: 1.5 s of speech" in served.engine.sessions[-1].memory.values()


def test_streamed_spoken_chat(client):
    chunks = client.chat.completions.create(
        model="mini",
        modalities=["text", "audio"],
        audio={"voice": "alloy", "format": "pcm16"},
        messages=HELLO,
        stream=True,
        max_completion_tokens=2,
    )
    pieces = [c.choices[0].delta.audio for c in chunks if c.choices[0].delta.audio is not None]
    assert "".join(piece.transcript or "" for piece in pieces) == "you said"
    assert len(b"".join(base64.b64decode(piece.data or "") for piece in pieces)) == 2 * 2 * 2880
    assert len({piece.id for piece in pieces}) == 1 and pieces[-1].expires_at > 0


@pytest.mark.parametrize("format", ["wav", "flac", "mp3", "opus", "pcm"])
def test_speech(client, format):
    with client.audio.speech.with_streaming_response.create(
        model="mini", voice="alloy", input="one two three", response_format=format
    ) as answer:
        data = answer.read()
    samples = 3 * 2880
    if format == "pcm":
        assert len(data) == 2 * samples
    elif format == "wav":
        assert data[:4] == b"RIFF" and len(data) == 44 + 2 * samples
    else:
        pcm, rate = soundfile.read(io.BytesIO(data))
        assert abs(len(pcm) / rate - samples / SAMPLE_RATE) < 0.2 and np.abs(pcm).max() > 0.1


def test_speech_as_server_sent_events(client):
    with client.audio.speech.with_streaming_response.create(
        model="mini", voice="alloy", input="one two", response_format="pcm", stream_format="sse"
    ) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert len(lines) == 3 and '"speech.audio.delta"' in lines[0] and '"speech.audio.done"' in lines[-1]


def test_transcription(client, served):
    recording = ("question.wav", wav(voice(0.7)))
    assert client.audio.transcriptions.create(model="mini", file=recording).text == "0.7 s of speech"
    assert (
        client.audio.transcriptions.create(model="mini", file=recording, response_format="text") == "0.7 s of speech\n"
    )
    events = list(client.audio.transcriptions.create(model="mini", file=recording, stream=True))
    assert "".join(e.delta for e in events if e.type == "transcript.text.delta") == events[-1].text == "0.7 s of speech"
    served.wait(lambda: not served.app.gateway.admission.active)


def talk(*seconds):
    """Silence and voice by turns."""
    parts = [voice(s) if n % 2 else silence(s) for n, s in enumerate(seconds)]
    return np.concatenate(parts)


def test_long_recording_is_transcribed_in_windows(client, monkeypatch):
    monkeypatch.setattr(long_form.SileroVad, "probability", lambda self, block: float(np.abs(block).max() > 0.05))
    recording = ("long.flac", encoded(talk(8, 2, 6, 1, 2), "FLAC"))
    answer = client.audio.transcriptions.create(model="mini", file=recording, response_format="verbose_json")
    assert [segment.text for segment in answer.segments] == ["2.4 s of speech", "1.4 s of speech"]
    assert answer.text == "2.4 s of speech 1.4 s of speech" and answer.duration == pytest.approx(19)
    assert (round(answer.segments[0].start, 1), round(answer.segments[1].end, 1)) == (7.8, 17.2)
    vtt = client.audio.transcriptions.create(model="mini", file=recording, response_format="vtt")
    assert vtt.startswith("WEBVTT\n\n00:00:07.") and "1.4 s of speech" in vtt
    events = list(client.audio.transcriptions.create(model="mini", file=recording, stream=True))
    assert "".join(e.delta for e in events if e.type == "transcript.text.delta") == events[-1].text == answer.text


def encoded(pcm, format, rate=SAMPLE_RATE):
    file = io.BytesIO()
    soundfile.write(file, pcm, rate, format=format)
    return file.getvalue()


@needs.extra("media", "av")
@pytest.mark.parametrize(("container", "codec"), [("ipod", "aac"), ("adts", "aac"), ("webm", "libopus")])
def test_formats_of_phones_and_browsers(client, container, codec):
    file = io.BytesIO()
    media.write_with_ffmpeg(file, voice(0.7), container, codec)
    assert client.audio.transcriptions.create(model="mini", file=("a", file.getvalue())).text == "0.7 s of speech"


def test_audio_bombs_are_refused(client, served):
    """A small file that decodes to hours is an error, and memory and the other clients do not notice."""
    hours = io.BytesIO()
    with soundfile.SoundFile(hours, "w", 8_000, 8, "PCM_16", format="FLAC") as file:
        for _ in range(5):
            file.write(np.zeros((26 * 8_000, 8), np.int16))
    with serving(limits=LimitsConfig(transcription_seconds=60)) as small:
        other = openai.OpenAI(api_key="none", base_url=f"{small.http}/v1", max_retries=0)
        with pytest.raises(openai.BadRequestError, match="longer than 60 s") as error:
            other.audio.transcriptions.create(model="mini", file=("a.flac", hours.getvalue()))
        assert error.value.param == "file" and not small.app.gateway.admission.active
    content = [{"type": "input_audio", "input_audio": {"data": base64.b64encode(hours.getvalue()).decode()}}]
    with pytest.raises(openai.BadRequestError, match=r"longer than 122\.88 s"):
        client.chat.completions.create(model="mini", messages=[{"role": "user", "content": content}])


def test_truncated_recording_is_transcribed_with_a_warning(client):
    cut = wav(voice(1.0))[:24_000]
    answer = client.audio.transcriptions.with_raw_response.create(model="mini", file=("cut.wav", cut))
    assert "cut.wav is truncated: 0.5 s of 1.0 s" in answer.headers["warning"]


def post_in_chunks(served, chunks, pause=0.0):
    """Send a form with `Transfer-Encoding: chunked`, as openai-node does with a stream; returns the response."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)

    def body():
        for chunk in chunks:
            yield chunk
            time.sleep(pause)

    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the server may answer before all is sent
        connection.request("POST", "/v1/audio/transcriptions", body(), kind, encode_chunked=True)
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def form(data):
    head = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nmini\r\n'
    head += b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    return head + data + b"\r\n--x--\r\n"


def test_chunked_upload(served):
    body = form(wav(voice(0.7)))
    assert post_in_chunks(served, [body[:5_000], body[5_000:]]) == (
        200,
        {"text": "0.7 s of speech", "usage": {"type": "duration", "seconds": pytest.approx(0.7)}},
    )


def test_large_and_slow_uploads_are_refused():
    with serving(limits=LimitsConfig(request_bytes=10_000, upload_seconds=0.5)) as served:
        status, body = post_in_chunks(served, [form(wav(voice(1.0)))])
        assert (status, body["error"]["code"]) == (413, "request_too_large")
        status, body = post_in_chunks(served, [form(b"")[:40], *[b"x"] * 5], pause=0.3)
        assert (status, body["error"]["code"]) == (408, "request_timeout")
        served.wait(lambda: not served.app.gateway.admission.active)


def test_full_server_refuses_an_upload_before_it_is_read():
    with serving(slots=1) as served, served.app.gateway.admission.admit("other"):
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
        connection.putrequest("POST", "/v1/audio/transcriptions")
        connection.putheader("Content-Length", "30000000")
        connection.putheader("Content-Type", "multipart/form-data; boundary=x")
        connection.endheaders()  # and nothing of the body
        assert connection.getresponse().status == 503


def test_long_text_is_read_in_sentences(client, served):
    before = len(served.engine.sessions)
    options = {"model": "mini", "voice": "alloy", "response_format": "pcm"}
    data = client.audio.speech.create(input="one two. three four five! six? ...", **options).content
    assert len(data) == 2 * 6 * 2880 and len(served.engine.sessions) == before + 3
    client.audio.speech.create(input="one two", **options)
    assert served.engine.sessions[-1].options.text == "one two."  # a model that ends with marks would speak on
    with pytest.raises(openai.BadRequestError, match="no letters or digits"):
        client.audio.speech.create(input="...", **options)
    with pytest.raises(openai.BadRequestError, match="input holds a word of 4,095 letters"):
        client.audio.speech.create(input="x" * 4095, **options)


@pytest.mark.parametrize(
    ("text", "speed", "fault"),
    [("one. two.", 1.0, ""), ("one. " + "two" * 60, 1.0, "left words out: twotwo"), ("one.", 4.0, "")],
)
def test_speech_that_does_not_fit_its_text_has_a_warning(client, caplog, text, speed, fault):
    def create(format):
        caplog.clear()
        make = client.audio.speech.with_raw_response.create
        answer = make(model="mini", voice="default", input=text, response_format=format, speed=speed)
        assert answer.content
        logged = any("left words out" in record.message for record in caplog.records)
        return answer.headers.get("warning", ""), logged

    with caplog.at_level("WARNING", "sg2.server"):
        header, logged = create("mp3")
        assert (fault in header) if fault else not header
        assert logged == bool(fault)
        assert create("pcm") == ("", bool(fault))  # headers come before the speech


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": HELLO * 600}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
        ({"modalities": ["video"]}, "modalities[0]"),
        ({"modalities": ["audio"], "audio": {"voice": "default", "format": "aac"}}, "audio.format"),
        ({"modalities": ["audio"], "audio": {"voice": "default", "format": "wav"}, "stream": True}, "audio.format"),
        ({"n": 2}, "n"),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "%"}}]}]},
            "messages[0].content[0].input_audio.data",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "QUJD"}}]}]},
            "messages[0].content[0].input_audio.data",
        ),
    ],
)
def test_invalid_chat_requests_name_the_field(client, served, fields, param):
    with pytest.raises(openai.BadRequestError) as error:
        client.post("/chat/completions", cast_to=object, body={"model": "mini", "messages": HELLO, **fields})
    assert error.value.param == param
    assert served.app.gateway.admission.active == 0


def test_other_invalid_requests(client, served):
    with pytest.raises(openai.BadRequestError, match="cannot be read as audio"):
        client.audio.transcriptions.create(model="mini", file=("x.wav", b"no sound"))
    form = {"headers": {"Content-Type": "multipart/form-data"}}
    with pytest.raises(openai.BadRequestError, match="file"):
        client.post(
            "/audio/transcriptions", cast_to=object, body={"model": "mini"}, files=[("other", b"x")], options=form
        )
    with pytest.raises(openai.BadRequestError, match="holds no audio"):
        client.audio.transcriptions.create(model="mini", file=("x.wav", wav(silence(0))))
    with pytest.raises(openai.BadRequestError, match="response_format"):
        client.audio.speech.create(model="mini", voice="default", input="x", response_format="aac")
    with pytest.raises(openai.BadRequestError, match="2013 patches is too long"):
        client.chat.completions.create(model="mini", messages=[{"role": "user", "content": "this is too long"}])
    with pytest.raises(openai.InternalServerError, match="the model failed"):
        client.chat.completions.create(model="mini", messages=[{"role": "user", "content": "fail"}])
    assert served.app.gateway.admission.active == 0 and not served.engine.open_sessions


def test_disconnecting_client_frees_its_slot(client, served):
    stream = client.chat.completions.create(
        model="mini", modalities=["audio"], audio={"voice": "default", "format": "pcm16"}, messages=SLOW, stream=True
    )
    next(iter(stream))
    assert served.app.gateway.admission.active == 1
    stream.close()
    served.wait(lambda: not served.app.gateway.admission.active and not served.engine.open_sessions)


def test_wrong_key_and_full_server():
    with serving(slots=1, api_keys=("a-good-key",)) as served:
        base = f"{served.http}/v1"
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(api_key="a-bad-key", base_url=base, max_retries=0).models.list()
        client = openai.OpenAI(api_key="a-good-key", base_url=base, max_retries=0)
        stream = client.chat.completions.create(model="mini", messages=SLOW, stream=True, modalities=["audio"])
        iterator = iter(stream)
        next(iterator)
        with pytest.raises(openai.APIStatusError) as error:
            client.chat.completions.create(model="mini", messages=HELLO)
        assert error.value.status_code == 503 and int(error.value.response.headers["retry-after"]) > 0
        assert error.value.code == "server_overloaded"
        stream.close()


def test_health_readiness_metrics_and_page(served):
    import urllib.error
    import urllib.request

    def get(path):
        with urllib.request.urlopen(served.http + path) as answer:
            return answer.read().decode(), answer.headers

    assert '"ok"' in get("/health")[0] and '"ready"' in get("/ready")[0]
    served.engine.alive = False
    for path, status in (("/health", "the engine has failed"), ("/ready", "failed")):
        with pytest.raises(urllib.error.HTTPError) as error:
            get(path)
        assert error.value.code == 503 and status in error.value.read().decode()
    served.engine.alive = True
    text, headers = get("/metrics")
    assert headers["content-type"].startswith("text/plain")
    for name in (
        "sg2_slots_in_use 0.0",
        "sg2_slots 4.0",
        "sg2_step_duration_seconds_count 1.0",
        "sg2_step_budget_seconds 0.12",
    ):
        assert name in text
    page, headers = get("/")
    assert "speechgpt2" in page and "default-src 'self'" in headers["content-security-policy"]


def test_speech_as_pcm(client):
    data = client.audio.speech.create(model="mini", voice="default", input="one", response_format="pcm").content
    assert np.abs(audio.from_pcm16(data)).max() == pytest.approx(0.2, abs=0.01)
