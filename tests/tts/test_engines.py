"""Engines beside espeak and flite: a bank of recordings, a model of ours, a server over HTTP, festival."""

from __future__ import annotations

import email
import http.server
import io
import threading
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import soxr
import torch

from speechgpt2.errors import UserError
from speechgpt2.tts import cosyvoice_server, own_model, voice_prompts, word_bank
from speechgpt2.tts.engines import ENGINES
from speechgpt2.tts.utterance import Voice
from speechgpt2.tts.voices import speak, training_voices
from speechgpt2.types import SAMPLE_RATE
from tests import needs


def tone(hertz: float, seconds: float, rate: int = 16_000) -> np.ndarray:
    silence = np.zeros(rate // 5, np.float32)
    time = np.arange(int(seconds * rate)) / rate
    return np.concatenate([silence, 0.2 * np.sin(2 * np.pi * hertz * time), silence]).astype(np.float32)


def pitch(pcm: np.ndarray, start: float, end: float) -> float:
    span = pcm[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)]
    return float(np.abs(np.fft.rfft(span)).argmax() * SAMPLE_RATE / len(span))


# recordings


@pytest.fixture
def bank(tmp_path):
    word_bank._bank.cache_clear()
    folder = tmp_path / "bank" / "anna"
    folder.mkdir(parents=True)
    for number, name in enumerate(("one", "two", "two_2", "Good_morning", "你", "名字")):
        soundfile.write(folder / f"{name}.wav", tone(300 + 100 * number, 0.3 + 0.1 * number), 16_000)
    return tmp_path / "bank"


def test_words_are_spliced_where_their_times_say(bank):
    voice = Voice("recordings", str(bank), "en", "anna")
    said = speak("Good morning, two one!", voice)
    assert [w.text for w in said.words] == ["Good", "morning", "two", "one"]
    good, morning, two, one = said.words
    assert pitch(said.pcm, good.start, morning.end) == pytest.approx(600, abs=5)
    assert pitch(said.pcm, two.start + 0.05, two.end - 0.05) in (pytest.approx(400, abs=5), pytest.approx(500, abs=5))
    assert pitch(said.pcm, one.start + 0.05, one.end - 0.05) == pytest.approx(300, abs=5)
    assert two.start - morning.end == pytest.approx(word_bank.PAUSE, abs=0.01)  # a comma is a pause
    assert one.start - two.end == pytest.approx(word_bank.JOINT, abs=0.01)
    assert good.end == pytest.approx(morning.start) and not ENGINES["recordings"].exact_times
    other = speak("Good morning, two one!", replace(voice, seed=1))
    assert len(other.pcm) != len(said.pcm)  # the other reading of two
    chinese = speak("你名字", Voice("recordings", str(bank), "zh", "anna"))
    assert [w.text for w in chinese.words] == ["你", "名", "字"]


@pytest.mark.parametrize(
    "change, error, complaint",
    [({}, ValueError, "no recording of 'three'"), ({"accent": "bob"}, UserError, "no such folder")],
)
def test_word_bank_without_a_recording_is_an_error(bank, change, error, complaint):
    with pytest.raises(error, match=complaint):
        speak("one three", replace(Voice("recordings", str(bank), "en", "anna"), **change))


# a server

TEXT = "I would like some soup and a glass of water, please."


class Cosy(http.server.BaseHTTPRequestHandler):
    """Speaks the interface of CosyVoice's FastAPI server with espeak's voice: keeps what it was asked."""

    asked: list[tuple[str, dict[str, bytes]]]
    pcm: np.ndarray
    headers_to_send: dict[str, str]

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        message = email.message_from_bytes(
            b"Content-Type: " + self.headers["Content-Type"].encode() + b"\r\n\r\n" + body
        )
        fields = {
            p.get_param("name", header="content-disposition"): p.get_payload(decode=True) for p in message.get_payload()
        }
        self.asked.append((self.path, fields))
        if self.path not in ("/tts/inference_sft", "/tts/inference_zero_shot", "/tts/inference_instruct2"):
            self.send_error(404)
            return
        self.send_response(200)
        for name, value in self.headers_to_send.items():
            self.send_header(name, value)
        self.end_headers()
        data = (self.pcm * 32767).astype("<i2").tobytes()
        for first in range(0, len(data), 7001):  # in odd pieces, as a stream may come
            self.wfile.write(data[first : first + 7001])

    def log_message(self, *_):
        pass


@pytest.fixture
def cosy():
    said = speak(TEXT, training_voices("en")[12])
    Cosy.asked, Cosy.headers_to_send = [], {}
    Cosy.pcm = soxr.resample(said.pcm, SAMPLE_RATE, 22_050)
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Cosy)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}/tts", said
    running.shutdown()
    running.server_close()


@needs.voice(training_voices("en")[12])
def test_server_speaks_with_times_from_the_aligner(cosy):
    url, truth = cosy
    said = speak(TEXT, Voice("server", f"{url}?rate=22050", "en", "中文女"))
    assert Cosy.asked == [("/tts/inference_sft", {"tts_text": TEXT.encode(), "spk_id": "中文女".encode()})]
    assert said.duration == pytest.approx(truth.duration, abs=0.06)
    assert [w.text for w in said.words] == [w.text for w in truth.words]
    errors = [abs(a.start - b.start) for a, b in zip(said.words, truth.words)]
    assert np.median(errors) < 0.05


@needs.voice(training_voices("en")[12])
def test_server_takes_the_rate_by_header_and_the_voice_by_clip(cosy, tmp_path):
    url, truth = cosy
    Cosy.headers_to_send = {cosyvoice_server.RATE_HEADER: "22050"}
    soundfile.write(tmp_path / "anna.wav", truth.pcm, SAMPLE_RATE)
    voice = Voice("server", url, "en", str(tmp_path / "anna.wav"))
    with pytest.raises(UserError, match=r"anna.txt: missing"):
        speak(TEXT, voice)
    (tmp_path / "anna.txt").write_text(TEXT)
    assert speak(TEXT, voice).duration == pytest.approx(truth.duration, abs=0.06)
    assert speak(TEXT, replace(voice, style="Whisper.")).words
    (zero, cloned), (instruct, instructed) = Cosy.asked
    assert zero == "/tts/inference_zero_shot" and cloned["prompt_text"].decode() == TEXT
    sent, rate = soundfile.read(io.BytesIO(cloned["prompt_wav"]))
    assert rate == SAMPLE_RATE and len(sent) == len(truth.pcm)
    assert (
        instruct == "/tts/inference_instruct2"
        and instructed["instruct_text"] == b"Whisper."
        and "prompt_wav" in instructed
    )


@pytest.mark.parametrize(
    "name, complaint",
    [
        ("ftp://x", "must begin with http"), ("{url}/other", "404"), ("http://127.0.0.1:9", "cannot be reached"),
        ("{url}?rate=x", "must be between 8000"),
    ],
)  # fmt: skip
@needs.voice(training_voices("en")[12])
def test_servers_that_cannot_be_used(cosy, name, complaint):
    with pytest.raises(UserError, match=complaint):
        speak("hello", Voice("server", name.format(url=cosy[0]), "en", "anna"))


# a model of ours


@pytest.fixture(scope="module")
def speaking_model():
    """A codec and a language model with random weights, in an order that the codec's codes fit."""
    from speechgpt2.chat import SpeechGPT
    from tests.codec.tiny import narrow_codec
    from tests.lm.tiny import tiny_lm

    return SpeechGPT(narrow_codec(), tiny_lm(chain_of_modality=True, chained=True))


def test_voice_prompt_becomes_the_greeting(speaking_model, tmp_path, monkeypatch):
    """The clip's codes and words stand before the reading, and what is read depends on them and on the take."""
    monkeypatch.setattr(own_model, "MAX_PATCHES", 12)
    soundfile.write(tmp_path / "anna.wav", tone(220, 0.4, SAMPLE_RATE), SAMPLE_RATE)
    (tmp_path / "anna.txt").write_text("Hello there")
    taken = []
    prefill = speaking_model.lm.prefill
    monkeypatch.setattr(
        speaking_model.lm, "prefill", lambda p, s, *a, **k: (taken.append(p), prefill(p, s, *a, **k))[1]
    )
    plain = Voice("model", "tiny", "en")
    cloned = replace(plain, accent=str(tmp_path / "anna.wav"))
    made = [
        own_model.read_aloud(speaking_model, "hello", v).codes for v in (plain, plain, cloned, replace(plain, seed=5))
    ]
    assert np.array_equal(made[0], made[1])
    assert not np.array_equal(made[0], made[2]) and not np.array_equal(made[0], made[3])
    prompt = speaking_model.lm.prompt
    taken = [patches for patches in taken if patches.text.shape[1] > 1]  # the others are its own
    assert torch.equal(taken[0].text, prompt.tts_prompt("hello").text)
    clip = voice_prompts.read_voice_prompt(cloned.accent)
    frames = speaking_model.codec.encode(torch.from_numpy(clip.pcm)[None])[0]
    codes = taken[2].codes[0][taken[2].codes[0, :, 0, 0] != prompt.config.no_speech].flatten(0, 1)
    assert torch.equal(codes[3 : 3 + len(frames)], frames)
    assert "Hello there" in prompt.tokenizer.decode(taken[2].text[0].tolist())


def test_endless_reading_is_an_error(speaking_model, monkeypatch):
    monkeypatch.setattr(own_model, "MAX_PATCHES", 2)
    monkeypatch.setattr(own_model, "_model", lambda name: speaking_model)
    with pytest.raises(ValueError, match="did not end"):
        speak("hello", Voice("model", "tiny", "en"))


@pytest.mark.slow
@needs.voice(training_voices("en")[12])
def test_mini_reads_aloud():
    said = speak("The soup is hot.", Voice("model", "mini", "en"))
    assert [w.text for w in said.words] == ["The", "soup", "is", "hot"] and 0.6 < said.duration < 4


# festival


@needs.tool("festival")
def test_festival_knows_its_words():
    voice = Voice("festival", "slt_hts", "en")
    said = speak('Hello there, "it\'s" twenty-one degrees.', voice)
    assert [w.text for w in said.words] == ["Hello", "there", "it's", "twenty-one", "degrees"]
    assert all(a.end <= b.start + 1e-3 for a, b in zip(said.words, said.words[1:]))
    assert said.words[-1].end == pytest.approx(said.duration, abs=0.15)
    assert {"h", "ə", "l", "iː"} <= {p.label for p in said.phones}
    quick = speak('Hello there, "it\'s" twenty-one degrees.', replace(voice, rate=260))
    assert quick.duration < 0.8 * said.duration
    with pytest.raises(ValueError, match="no voice"):
        speak("x", replace(voice, name="nobody"))
