"""`sg2 greeting make`, and what chat, say and serve do with the greetings of a file."""

import json

import numpy as np
import pytest
import torch

from speechgpt2 import audio
from speechgpt2.chat import Conversation, SpeechGPT
from speechgpt2.codec.model import Codec
from speechgpt2.lm.greetings import FILE, Greetings, read_greetings
from speechgpt2.lm.model import SpeechLM
from speechgpt2.tts.utterance import Voice
from speechgpt2.tts.voices import speak
from speechgpt2.types import AudioDelta, ReplyDone, Speech
from tests import needs
from tests.test_cli import MODEL, ROOT, fails, sg2, tiny, workdir  # noqa: F401 (fixtures)

SLT = Voice("flite", "slt", "en")
TEXT = "What is the weather?"
CODES = np.arange(27).reshape(9, 3)


def write_greetings(path, prompt):
    filler = prompt.special_ids.filler
    lines = [
        {"name": "anna", "text": [filler] * 3, "audio": CODES.reshape(-1).tolist()},
        {"name": "ben", "text": [filler] * 3, "audio": (CODES + 100).reshape(-1).tolist()},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def prompt():
    return SpeechLM.from_pretrained("tiny").prompt


@needs.tool("flite")
@needs.tool("espeak-ng")
def test_synthesized_greeting_is_laid_out_as_training_does_it(workdir, prompt, monkeypatch):  # noqa: F811
    utterance = speak(TEXT, SLT)  # flite does not say a text in the same way twice
    monkeypatch.setattr("speechgpt2.tts.voices.speak", lambda text, voice: utterance)
    options = ["--text", TEXT, *MODEL]
    assert "voice anna" in sg2("greeting", "make", "g.jsonl", "--voice", "flite/slt", "--name", "anna", *options).stdout
    codes = Codec.from_pretrained("tiny").encode(torch.from_numpy(utterance.pcm)[None])[0]
    wanted = prompt.align_speech(codes, utterance.words, TEXT)
    entry = json.loads((workdir / "g.jsonl").read_text())
    assert entry == {"name": "anna", "text": [*wanted.tokens], "audio": wanted.codes.reshape(-1).tolist()}

    before = (workdir / "g.jsonl").read_text()
    assert "already holds a voice 'anna'" in fails(
        "greeting", "make", "g.jsonl", "--voice", "flite/slt", "--name", "anna", *options
    )
    assert (workdir / "g.jsonl").read_text() == before
    sg2("greeting", "make", "g.jsonl", "--voice", "flite/kal", "--name", "ben", "--default", *options)
    found = read_greetings(workdir / "g.jsonl", prompt)
    assert list(found.speech) == ["anna", "ben"] and found.default == "ben"
    assert "already has a default" in fails(
        "greeting", "make", "g.jsonl", "--voice", "flite/kal", "--default", *options
    )


@needs.tool("espeak-ng")
def test_recorded_greeting_is_aligned_with_its_text(prompt, workdir):  # noqa: F811
    clip, text = ROOT / "examples" / "question-1.wav", "What's three plus five?"
    sg2("greeting", "make", "g.jsonl", "--voice-file", clip, "--text", text, *MODEL)
    (speech,) = read_greetings(workdir / "g.jsonl", prompt).speech.values()
    fillers = {prompt.special_ids.filler, prompt.special_ids.last_filler}
    spoken = [token for token in speech.tokens if token not in fillers]
    words = ["What's", " three", " plus", " five?"]
    assert spoken == [token for word in words for token in prompt.encode_word(word)]
    starts = [at for at, token in enumerate(speech.tokens) if token not in fillers]
    assert starts[-1] > len(speech.tokens) // 2  # as they are spoken, not all at the start


def test_recording_without_sound_is_refused():
    audio.save("silent.wav", np.zeros(24_000, np.float32))
    assert "silent.wav: holds no sound" in fails(
        "greeting", "make", "g.jsonl", "--voice-file", "silent.wav", "--text", TEXT, *MODEL
    )


@pytest.fixture
def prompts(monkeypatch):
    """The prompts with which conversations begin."""
    seen = []

    def reply(self, user_spoke):
        seen.append(self._pending[0])
        yield AudioDelta(np.full(2400, 0.25, np.float32))
        yield ReplyDone("stop")

    monkeypatch.setattr(Conversation, "reply", reply)
    return seen


def holds(patches, codes):
    """Whether the prompt holds a greeting with these codes, whole."""
    present = patches.codes[0].flatten(0, 1)
    present = present[present[:, 0] != 1024]
    return np.array_equal(present.numpy(), codes)


def test_chat_and_say_use_the_chosen_voice(prompt, workdir, prompts):  # noqa: F811
    write_greetings(workdir / "g.jsonl", prompt)
    spoken, given = ["chat", "in.wav", "-o", "out.wav", *MODEL], ["--greetings", "g.jsonl"]
    for options, codes in [
        (["--voice", "ben"], CODES + 100),
        (["--greeting-index", "0"], CODES),
        ([], np.zeros((0, 3))),
    ]:
        sg2(*spoken, *given, *options)
        assert holds(prompts.pop(), codes), options
    sg2("chat", "--text", "hello", *MODEL, *given, "--voice", "ben")
    assert holds(prompts.pop(), np.zeros((0, 3)))  # a written reply has no voice
    sg2("say", "hello", "-o", "out.wav", *MODEL, *given, "--voice", "anna")
    assert holds(prompts.pop(), CODES)
    assert "no voice 'carl'; this model's voices: anna, ben" in fails(*spoken, *given, "--voice", "carl")
    assert "2 greetings, counted from 0, and no number 2" in fails(*spoken, *given, "--greeting-index", "2")


def test_python_chooses_a_voice(prompt, workdir, prompts):  # noqa: F811
    write_greetings(workdir / "g.jsonl", prompt)
    model = SpeechGPT.from_pretrained("tiny", greetings=workdir / "g.jsonl")
    assert model.voices == ("anna", "ben")
    model.say("hello", voice="ben")
    assert holds(prompts.pop(), CODES + 100)


def test_greetings_of_another_model_beside_it_are_left_out_with_a_warning(tmp_path):
    SpeechLM.from_pretrained("tiny").save_pretrained(tmp_path)
    (tmp_path / FILE).write_text(json.dumps({"text": [99_999], "audio": [1, 2, 3] * 3}))
    with pytest.warns(UserWarning, match="line 1: the model has no token 99999.*used without these greetings"):
        lm = SpeechLM.from_pretrained(tmp_path)
    assert not lm.prompt.greetings.speech


def test_model_is_saved_with_its_greetings(tmp_path):
    lm = SpeechLM.from_pretrained("tiny")
    spoken = Speech(codes=CODES, text="", tokens=(lm.prompt.special_ids.filler,) * 3)
    written = Speech(codes=CODES + 1, text="hello")
    lm.prompt.greetings = Greetings({"anna": spoken, "1": written}, "anna")
    lm.save_pretrained(tmp_path)
    again = SpeechLM.from_pretrained(tmp_path).prompt.greetings
    assert list(again.speech) == ["anna", "1"] and again.default == "anna"
    assert again.speech["anna"].tokens == spoken.tokens and again.speech["1"].text == "hello"
    assert np.array_equal(again.speech["1"].codes, CODES + 1)


def test_server_offers_the_voices_of_a_file(prompt, workdir, monkeypatch):  # noqa: F811
    needs.module("fastapi", "server")
    from speechgpt2.cli.serve import load_app
    from speechgpt2.server.config import ServerConfig

    write_greetings(workdir / "g.jsonl", prompt)
    settings = ServerConfig(model="tiny", device="cpu", slots=1, greetings="g.jsonl", voice="ben")
    app = load_app(settings)
    try:
        assert [(voice.name, voice.default) for voice in app.engine.voices] == [("anna", False), ("ben", True)]
        assert app.gateway.default_session.audio.output.voice == "ben"
    finally:
        app.engine.close()
