"""The Gradio demo on a real port, before a real server with a fake engine: what clients do, each by a client."""

import asyncio
import re
import urllib.request
from types import SimpleNamespace

import numpy as np
import pytest

from speechgpt2 import audio
from tests import needs
from tests.demo.test_command import free_port
from tests.server.conftest import serving, voice

needs.module("gradio", "demo")

STREAMS = needs.tool("ffmpeg")  # Gradio streams audio through it

from gradio_client import Client, handle_file  # comes with gradio

from speechgpt2.demo import app
from speechgpt2.demo.connection import ServerAddress
from speechgpt2.demo.greetings import Greeting
from speechgpt2.duplex.protocol import EngineVoice
from speechgpt2.server.config import SessionsConfig
from tests.server.fake import FakeEngine, SavingEngine

ANSWER = "and I answer that in some words more than you may want to hear"


class Demo:
    """A server, the demo on it, and the clients of the demo."""

    def __init__(self, served, blocks, url):
        self.served, self.blocks, self.url, self.clients = served, blocks, url, []

    def new_client(self):
        self.clients.append(Client(self.url, verbose=False, download_files=False))
        return self.clients[-1]

    @property
    def histories(self):
        return [list(session.memory.values()) for session in self.served.engine.open_sessions]


@pytest.fixture(scope="module")
def greetings():
    return [Greeting("0", "Good day!"), Greeting("anna", "Hello!", lambda: voice(0.48))]


@pytest.fixture(scope="module")
def running_demo(greetings):
    voices = [EngineVoice(greeting.name, greeting.text) for greeting in greetings]
    with serving(FakeEngine(3, voices), slots=3) as served:
        blocks = app.build_page(ServerAddress(served.http), greetings)
        url = app.launch(blocks, "127.0.0.1", free_port())
        yield Demo(served, blocks, url)
        blocks.close(verbose=False)


@pytest.fixture
def demo(running_demo):
    yield running_demo
    while running_demo.clients:
        running_demo.clients.pop().predict(api_name="/clear")  # closing it would wait for a heartbeat
    running_demo.served.wait(lambda: not running_demo.served.engine.open_sessions)


def transcript(chat):
    """Return role and text of every line."""
    return [(line["role"], "".join(part["text"] for part in line["content"])) for line in chat]


def ask(client, turn, mode):
    """One turn; returns what is lines at last, and all that was updates."""
    typed = mode.startswith("t")
    job = client.submit(turn if typed else handle_file(turn), mode, api_name="/write" if typed else "/speak")
    chat = job.result(20)[0]
    return transcript(chat), job.outputs()


@pytest.fixture
def recording(tmp_path):
    audio.save(tmp_path / "question.wav", voice(1.5))
    return tmp_path / "question.wav"


@pytest.mark.parametrize("mode", [pytest.param("t2s", marks=STREAMS), "t2t"])
def test_written_turn(demo, mode):
    lines, updates = ask(demo.new_client(), "my question", mode)
    assert lines == [("user", "my question"), ("assistant", f"you said my question {ANSWER}")]
    lengths = [len(transcript(out[0])[-1][1]) for out in updates if len(out[0]) == 2]
    assert lengths == sorted(lengths) and len(set(lengths)) > 5  # word by word
    assert demo.served.engine.open_sessions[-1].settings.speak == (mode == "t2s")
    assert has_audio(updates) == (mode == "t2s")
    if has_audio(updates):
        made = 0.12 * len(lines[1][1].split())
        demo.served.wait(lambda: made <= seconds(playlist(updates)) < made + 0.1)  # AAC pads to whole frames


def seconds(url):
    """Return the length of a playlist."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        return sum(map(float, re.findall(r"#EXTINF:([\d.]+)", answer.read().decode())))


@pytest.mark.parametrize("mode", [pytest.param("s2s", marks=STREAMS), "s2t"])
def test_spoken_turn(demo, mode, recording):
    lines, updates = ask(demo.new_client(), recording, mode)
    assert lines == [("user", "1.5 s of speech"), ("assistant", f"you said 1.5 s of speech {ANSWER}")]
    assert has_audio(updates) == (mode == "s2s")


def has_audio(updates):
    """Whether the response has audio."""
    return bool(playlist(updates))


def playlist(updates):
    """Return the URL of the streamed audio; None if there is none."""
    return next((out[1]["url"] for out in updates if "playlist" in str(out[1])), None)


def test_mode_changes_within_a_conversation(demo, recording):
    client = demo.new_client()
    ask(client, "first", "t2t")
    ask(client, recording, "s2t")
    lines, _ = ask(client, "third", "t2t")
    assert [words for role, words in lines if role == "user"] == ["first", "1.5 s of speech", "third"]
    assert len(demo.histories) == 1 and len(demo.histories[0]) == 6


def test_sessions_are_isolated(demo):
    one, other = demo.new_client(), demo.new_client()
    ask(one, "my secret is blue", "t2t")
    lines, _ = ask(other, "hello", "t2t")
    assert "secret" not in str(lines) and len(lines) == 2
    again, _ = ask(one, "again", "t2t")
    assert [words for role, words in again if role == "user"] == ["my secret is blue", "again"]
    assert sorted("secret" in str(memory) for memory in demo.histories) == [False, True]
    assert sorted(map(len, demo.histories)) == [2, 4]


def test_closing_the_page_releases_the_slot(demo):
    client = demo.new_client()
    page = urllib.request.urlopen(f"{demo.url}/gradio_api/heartbeat/{client.session_hash}")  # as browsers keep open
    assert b"ALIVE" in page.readline()
    ask(client, "hello", "t2t")
    assert len(demo.histories) == 1
    page.close()
    demo.served.wait(lambda: not demo.served.engine.open_sessions)


@STREAMS
def test_audio_streams_while_it_is_generated(demo):
    client = demo.new_client()
    job = client.submit("a slow question", "t2s", api_name="/write")
    demo.served.wait(lambda: has_audio(job.outputs()), 10)
    demo.served.wait(lambda: seconds(playlist(job.outputs())) > 0.1, 10)  # can be played already
    assert not job.done() and demo.served.engine.open_sessions[-1].replying
    client.predict(api_name="/stop")
    chat = transcript(job.result(10)[0])
    assert chat[-1][1].endswith(" …") and len(chat[-1][1].split()) < 20
    memory = demo.histories[0][-1]
    assert memory.startswith("assistant: you") and not memory.endswith("hear")


@STREAMS
def test_new_turn_interrupts_the_answer(demo):
    client = demo.new_client()
    first = client.submit("a slow question", "t2s", api_name="/write")
    demo.served.wait(lambda: has_audio(first.outputs()), 10)
    lines, _ = ask(client, "another", "t2t")
    first.result(10)
    assert [role for role, _ in lines] == ["user", "assistant", "user", "assistant"]
    assert lines[1][1].endswith(" …") and lines[3] == ("assistant", f"you said another {ANSWER}")


def test_greeting_plays_and_starts_the_conversation(demo):
    client = demo.new_client()
    chat, preview = client.predict(1, api_name="/greet")
    assert transcript(chat) == [("assistant", "Hello!")]
    assert len(audio.load(preview["path"])) == 12 * 960
    lines, _ = ask(client, "thanks", "t2t")
    assert [words for _, words in lines] == ["Hello!", "thanks", f"you said thanks {ANSWER}"]
    assert demo.served.engine.open_sessions[-1].settings.voice == "anna"
    chat, _ = client.predict(0, api_name="/greet")
    assert transcript(chat) == [("assistant", "Good day!")] and not demo.histories


def test_clear(demo):
    client = demo.new_client()
    ask(client, "my secret is blue", "t2t")
    assert client.predict(api_name="/clear")[0] == []
    lines, _ = ask(client, "hello", "t2t")
    assert len(lines) == 2 and "secret" not in str(demo.histories)


@pytest.mark.parametrize(
    ("turn", "mode", "message"),
    [
        ("  ", "t2t", "write something first"),
        ("hello", "s2s", "mode s2s needs speech"),
        ("please fail", "t2t", "the model failed"),
    ],
)
def test_errors_are_one_line(demo, turn, mode, message):
    client = demo.new_client()
    with pytest.raises(Exception, match=message) as caught:
        client.predict(turn, mode, api_name="/write")
    assert "Traceback" not in str(caught.value)
    assert ask(client, "and now", "t2t")[0][-1] == ("assistant", f"you said and now {ANSWER}")


def test_invalid_recordings(demo, tmp_path):
    client = demo.new_client()
    (tmp_path / "no.wav").write_text("this is not audio")
    with pytest.raises(Exception, match="cannot be read as audio"):
        client.predict(handle_file(tmp_path / "no.wav"), "s2s", api_name="/speak")
    audio.save(tmp_path / "short.wav", np.zeros(240, np.float32))
    with pytest.raises(Exception, match="too short"):
        client.predict(handle_file(tmp_path / "short.wav"), "s2s", api_name="/speak")


def test_full_server(demo):
    for _ in range(3):
        ask(demo.new_client(), "hello", "t2t")
    client = demo.new_client()
    with pytest.raises(Exception, match=re.compile("slot|place|busy|full", re.I)):
        client.predict("hello", "t2t", api_name="/write")
    demo.clients[0].predict(api_name="/clear")
    demo.served.wait(lambda: demo.served.app.gateway.admission.active < 3)
    assert len(ask(client, "hello", "t2t")[0]) == 2


def test_style_and_speed(demo):
    client = demo.new_client()
    client.predict("whisper", api_name="/style")
    client.predict(1.25, api_name="/speed")
    ask(client, "hello", "t2t")
    settings = demo.served.engine.open_sessions[-1].settings
    assert settings.style.whisper and settings.speed == 1.25


def test_privacy_is_stated():
    assert "deleted when you close" in app.privacy(ServerAddress("http://127.0.0.1:8000"))
    assert "for 30 days" in app.privacy(ServerAddress("http://127.0.0.1:8000", saves=True, keep_days=30))


def test_browser_lists_its_conversations(tmp_path):
    """By the handlers of the components that a saving server adds: the browser's state stays in the browser."""
    page = SimpleNamespace(session_hash="a page")

    async def scenario(address):
        handlers = app.PageHandlers(address, ())
        async for _ in handlers.write("first words", "t2t", page):
            pass
        talks, choices = await handlers.remember([], page)
        [(title, id)] = choices.choices
        assert title == "first words" and talks == [{"id": id, "title": title}] and choices.value == id
        await handlers.clear(page)
        chat = await handlers.resume(id, page)
        assert chat[0]["content"] == "first words" and len(chat) == 2
        talks, choices, chat = await handlers.delete(id, talks, page)
        assert talks == choices.choices == chat == []
        with pytest.raises(app.gr.Error, match="no such conversation"):
            await handlers.resume(id, page)
        await handlers.sessions.remove(page)

    with serving(SavingEngine(), sessions=SessionsConfig(str(tmp_path))) as served:
        address = ServerAddress(served.http, saves=True)
        app.build_page(address, examples=["Hello?"], live_page=served.http)
        asyncio.run(asyncio.wait_for(scenario(address), 600))
    assert not list(tmp_path.glob("*.jsonl"))
