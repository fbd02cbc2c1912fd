"""Arbitrary input from outside is accepted, or refused by the one error of its reader: never another exception.

pytest tests/test_fuzz.py                # a few seconds
python -m tests.fuzz --minutes 60        # for hours; prints counts
"""

import importlib.util
import io
import json
import os

import numpy as np
import soundfile
import yaml

from speechgpt2 import config
from speechgpt2.audio import AudioReader
from speechgpt2.codec.config import CodecConfig
from speechgpt2.errors import UserError
from speechgpt2.greeting_file import read_entries
from speechgpt2.lm.config import LMConfig
from speechgpt2.server.config import ServerConfig, read_config
from tests import media, needs

hypothesis = needs.module("hypothesis", "dev")
needs.module("pydantic", "server")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from speechgpt2.server.api_errors import ApiError, validate_request
from speechgpt2.server.chat_completions import ChatRequest
from speechgpt2.server.messages import MESSAGE_TYPES, RealtimeSerializer
from speechgpt2.server.responses_api import ResponsesRequest
from speechgpt2.server.schema import ProtocolError, WireModel
from speechgpt2.server.session_config import SessionConfig
from speechgpt2.server.speech_api import SpeechRequest
from speechgpt2.server.transcription_api import TranscriptionRequest

fuzzed = settings(
    max_examples=int(os.environ.get("SG2_FUZZ_EXAMPLES", 60)),
    derandomize="SG2_FUZZ_EXAMPLES" not in os.environ,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, -1, 1e308, float("nan"), float("inf"), "", "auto", "user", "audio", "input_text", "\ud800"]),
    st.text(max_size=8),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)


def likely(model, depth=1):
    """Objects with the fields of a model, whose values are often wrong."""
    values = SCALARS | VALUES
    if depth:
        values |= st.one_of([likely(child, depth - 1) for child in WireModel.__subclasses__()])
    return st.fixed_dictionaries({}, optional=dict.fromkeys(model.model_fields, values))


REQUESTS = (ChatRequest, ResponsesRequest, SpeechRequest, TranscriptionRequest)


@fuzzed
@given(st.sampled_from(REQUESTS).flatmap(lambda model: st.tuples(st.just(model), likely(model))))
def test_rest_requests(case):
    model, body = case
    try:
        validate_request(model, body)
    except ApiError as error:
        assert error.status == 400 and error.body["param"]


@fuzzed
@given(
    st.sampled_from(sorted(MESSAGE_TYPES)).flatmap(lambda kind: st.tuples(st.just(kind), likely(MESSAGE_TYPES[kind])))
)
def test_realtime_messages(case):
    kind, fields = case
    try:
        RealtimeSerializer().deserialize(json.dumps({**fields, "type": kind}))
    except ProtocolError as error:
        assert error.code and str(error)


@fuzzed
@given(st.text() | VALUES.map(lambda value: json.dumps(value)))
def test_realtime_texts(text):
    try:
        RealtimeSerializer().deserialize(text)
    except ProtocolError as error:
        assert error.code and str(error)


@fuzzed
@given(likely(SessionConfig))
def test_session_settings(changes):
    try:
        SessionConfig(model="mini").updated(changes)
    except ProtocolError as error:
        assert str(error)


def keys(cls):
    """Mappings with the keys of a configuration, whose values are often wrong."""
    return st.fixed_dictionaries({}, optional=dict.fromkeys(cls.__dataclass_fields__, SCALARS | VALUES))


@fuzzed
@given(
    st.sampled_from([ServerConfig, CodecConfig, LMConfig]).flatmap(lambda c: st.tuples(st.just(c), keys(c) | VALUES))
)
def test_configurations(case):
    cls, values = case
    try:
        config.from_dict(cls, values)
    except UserError as error:
        assert "\n" not in str(error).strip()


@fuzzed
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass"))
       | VALUES.map(lambda value: yaml.safe_dump(value, allow_unicode=False).encode()))  # fmt: skip
def test_configuration_files(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "config.yaml"
    path.write_bytes(data)
    try:
        read_config(path, {}, {})
    except UserError as error:
        assert "config.yaml" in str(error)


@fuzzed
@given(st.lists(VALUES.map(lambda value: json.dumps(value)) | st.text(max_size=30) | st.fixed_dictionaries(
    {"text": SCALARS | VALUES, "audio": VALUES | st.lists(st.integers(-1, 1024), max_size=6)},
    optional={"name": SCALARS, "default": SCALARS}).map(lambda value: json.dumps(value)), max_size=3))  # fmt: skip
def test_greeting_files(tmp_path_factory, lines):
    path = tmp_path_factory.getbasetemp() / "greetings.jsonl"
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    try:
        for entry in read_entries(path, 3, 1024, lambda entry: entry):
            assert entry.codes.shape[1] == 3
    except UserError as error:
        assert "greetings.jsonl" in str(error)


def recording(container):
    file = io.BytesIO()
    tone = 0.2 * np.sin(np.arange(4_000) / 9)
    soundfile.write(file, np.stack([tone, tone], 1), 16_000, format=container)
    return file.getvalue()


def recordings():
    yield from ((container, recording(container)) for container in ("WAV", "FLAC", "OGG", "MP3"))
    if importlib.util.find_spec("av"):
        for container, codec in (("adts", "aac"), ("ipod", "aac"), ("webm", "libopus"), ("mpegts", "aac")):
            file = io.BytesIO()
            media.write_with_ffmpeg(file, (0.2 * np.sin(np.arange(4_000) / 9)).astype(np.float32), container, codec)
            yield container, file.getvalue()


FILES = dict(recordings())
CHANGES = st.lists(st.tuples(st.integers(0, 400), st.binary(min_size=1, max_size=4)), max_size=4)


@fuzzed
@given(st.sampled_from(sorted(FILES)), CHANGES, st.integers(0, 4_000))
def test_audio_files(container, changes, length):
    data = bytearray(FILES[container])
    for at, new in changes:
        data[at : at + len(new)] = new
    reader = AudioReader(io.BytesIO(bytes(data[: length or None])), "damaged", max_seconds=60.0)
    try:
        assert all(np.isfinite(block).all() for block in reader)
    except UserError as error:
        assert str(error).startswith("damaged: ")
    assert reader.seconds < 61


def test_configurations_that_are_none(tmp_path):
    """Cases that were tracebacks: a date, brackets, a file without end."""
    for text, message in (
        ("slots: 2020-13-45", "cannot be read as YAML"),
        ("[" * 3_000, "nested too deeply"),
        ("{" * 3_000, "nested too deeply"),
        ("x" * (config.MAX_BYTES + 1), "is larger than"),
    ):
        path = tmp_path / "config.yaml"
        path.write_text(text)
        try:
            config.read(path)
        except UserError as error:
            assert message in str(error)
        else:
            raise AssertionError(text[:20])
