"""The Gradio demo on a real port, before a real server with a fake engine: what visitors do, each by a client."""

import json
import re
import urllib.request

import numpy as np
import pytest

from speechgpt2 import audio
from tests import needs
from tests.demo.test_command import free_port
from tests.server.conftest import serving, voice

needs.module("gradio", "demo")

from gradio_client import Client, handle_file  # comes with gradio

from speechgpt2.demo import app
from speechgpt2.demo.greetings import read
from speechgpt2.demo.talk import Wire

ANSWER = "and I answer that in some words more than you may want to hear"


def greeting_sound(codes):
    return voice(len(codes) * 0.04)


class House:
    """A server, the demo in front of it, and its visitors."""

    def __init__(self, served, blocks, url):
        self.served, self.blocks, self.url, self.visitors = served, blocks, url, []

    def visitor(self):
        self.visitors.append(Client(self.url, verbose=False, download_files=False))
        return self.visitors[-1]

    @property
    def memories(self):
        return [list(session.memory.values()) for session in self.served.engine.open_sessions]


@pytest.fixture(scope="module")
def greetings(tmp_path_factory):
    path = tmp_path_factory.mktemp("greetings") / "greetings.jsonl"
    lines = [{"text": [7, 8, 9], "audio": [1, 2, 3] * 9}, {"text": "Hello!", "audio": [4, 5, 6] * 12}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read(path, 3, 1024, words=lambda ids: f"ids {ids}", sound=greeting_sound)


@pytest.fixture(scope="module")
def open_house(greetings):
    with serving(slots=3) as served:
        blocks = app.page(Wire(served.http), greetings)
        url = app.launch(blocks, "127.0.0.1", free_port())
        yield House(served, blocks, url)
        blocks.close(verbose=False)


@pytest.fixture
def house(open_house):
    yield open_house
    while open_house.visitors:
        open_house.visitors.pop().predict(api_name="/clear")  # closing it would wait for a heartbeat
    open_house.served.wait(lambda: not open_house.served.engine.open_sessions)


def said(talk):
    """Role and words of every line shown."""
    return [(line["role"], "".join(part["text"] for part in line["content"])) for line in talk]


def ask(client, turn, mode):
    """One turn; returns what is shown at last, and all that was yielded."""
    typed = mode.startswith("t")
    job = client.submit(turn if typed else handle_file(turn), mode, api_name="/write" if typed else "/speak")
    talk = job.result(20)[0]
    return said(talk), job.outputs()


@pytest.fixture
def recording(tmp_path):
    audio.save(tmp_path / "question.wav", voice(1.5))
    return tmp_path / "question.wav"


@pytest.mark.parametrize("mode", ["t2s", "t2t"])
def test_what_is_written_is_answered(house, mode):
    shown, yielded = ask(house.visitor(), "my question", mode)
    assert shown == [("user", "my question"), ("assistant", f"you said my question {ANSWER}")]
    lengths = [len(said(out[0])[-1][1]) for out in yielded if len(out[0]) == 2]
    assert lengths == sorted(lengths) and len(set(lengths)) > 5  # word by word
    assert house.served.engine.open_sessions[-1].settings.speak == (mode == "t2s")
    assert spoken(yielded) == (mode == "t2s")
    if spoken(yielded):
        made = 0.12 * len(shown[1][1].split())
        house.served.wait(lambda: made <= seconds(playlist(yielded)) < made + 0.1)  # AAC pads to whole frames


def seconds(url):
    """How much sound a playlist holds."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        return sum(map(float, re.findall(r"#EXTINF:([\d.]+)", answer.read().decode())))


@pytest.mark.parametrize("mode", ["s2s", "s2t"])
def test_what_is_spoken_is_answered(house, mode, recording):
    shown, yielded = ask(house.visitor(), recording, mode)
    assert shown == [("user", "1.5 s of speech"), ("assistant", f"you said 1.5 s of speech {ANSWER}")]
    assert spoken(yielded) == (mode == "s2s")


def spoken(yielded):
    """Whether any sound came."""
    return bool(playlist(yielded))


def playlist(yielded):
    """Where the sound of an answer is streamed from, None if there is none."""
    return next((out[1]["url"] for out in yielded if "playlist" in str(out[1])), None)


def test_modes_may_change_within_a_talk(house, recording):
    client = house.visitor()
    ask(client, "first", "t2t")
    ask(client, recording, "s2t")
    shown, _ = ask(client, "third", "t2t")
    assert [words for role, words in shown if role == "user"] == ["first", "1.5 s of speech", "third"]
    assert len(house.memories) == 1 and len(house.memories[0]) == 6


def test_visitors_never_see_each_other(house):
    one, other = house.visitor(), house.visitor()
    ask(one, "my secret is blue", "t2t")
    shown, _ = ask(other, "hello", "t2t")
    assert "secret" not in str(shown) and len(shown) == 2
    again, _ = ask(one, "again", "t2t")
    assert [words for role, words in again if role == "user"] == ["my secret is blue", "again"]
    assert sorted("secret" in str(memory) for memory in house.memories) == [False, True]
    assert sorted(map(len, house.memories)) == [2, 4]


def test_a_place_is_given_back_when_a_page_is_closed(house):
    client = house.visitor()
    page = urllib.request.urlopen(f"{house.url}/gradio_api/heartbeat/{client.session_hash}")  # as browsers keep open
    assert b"ALIVE" in page.readline()
    ask(client, "hello", "t2t")
    assert len(house.memories) == 1
    page.close()
    house.served.wait(lambda: not house.served.engine.open_sessions)


def test_sound_comes_while_it_is_made(house):
    client = house.visitor()
    job = client.submit("a slow question", "t2s", api_name="/write")
    house.served.wait(lambda: spoken(job.outputs()), 10)
    house.served.wait(lambda: seconds(playlist(job.outputs())) > 0.1, 10)  # can be played already
    assert not job.done() and house.served.engine.open_sessions[-1].replying
    client.predict(api_name="/stop")
    talk = said(job.result(10)[0])
    assert talk[-1][1].endswith(" …") and len(talk[-1][1].split()) < 20
    memory = house.memories[0][-1]
    assert memory.startswith("assistant: you") and not memory.endswith("hear")


def test_a_new_turn_interrupts_the_answer(house):
    client = house.visitor()
    first = client.submit("a slow question", "t2s", api_name="/write")
    house.served.wait(lambda: spoken(first.outputs()), 10)
    shown, _ = ask(client, "another", "t2t")
    first.result(10)
    assert [role for role, _ in shown] == ["user", "assistant", "user", "assistant"]
    assert shown[1][1].endswith(" …") and shown[3] == ("assistant", f"you said another {ANSWER}")


def test_a_greeting_is_heard_and_begins_the_talk(house):
    client = house.visitor()
    talk, preview = client.predict(1, api_name="/greet")
    assert said(talk) == [("assistant", "Hello!")]
    assert len(audio.load(preview["path"])) == 12 * 960
    shown, _ = ask(client, "thanks", "t2t")
    assert [words for _, words in shown] == ["Hello!", "thanks", f"you said thanks {ANSWER}"]
    assert house.served.engine.open_sessions[-1].settings.greeting.text == "Hello!"
    talk, _ = client.predict(0, api_name="/greet")
    assert said(talk) == [("assistant", "ids [7, 8, 9]")] and not house.memories


def test_a_talk_is_cleared(house):
    client = house.visitor()
    ask(client, "my secret is blue", "t2t")
    assert client.predict(api_name="/clear")[0] == []
    shown, _ = ask(client, "hello", "t2t")
    assert len(shown) == 2 and "secret" not in str(house.memories)


@pytest.mark.parametrize(
    ("turn", "mode", "message"),
    [
        ("  ", "t2t", "write something first"),
        ("hello", "s2s", "mode s2s takes speech"),
        ("please fail", "t2t", "the model stumbled"),
    ],
)
def test_what_cannot_be_answered_is_one_line(house, turn, mode, message):
    client = house.visitor()
    with pytest.raises(Exception, match=message) as caught:
        client.predict(turn, mode, api_name="/write")
    assert "Traceback" not in str(caught.value)
    assert ask(client, "and now", "t2t")[0][-1] == ("assistant", f"you said and now {ANSWER}")


def test_a_recording_that_is_none_or_no_sound(house, tmp_path):
    client = house.visitor()
    (tmp_path / "no.wav").write_text("this is no sound")
    with pytest.raises(Exception, match="cannot be read as sound"):
        client.predict(handle_file(tmp_path / "no.wav"), "s2s", api_name="/speak")
    audio.save(tmp_path / "short.wav", np.zeros(240, np.float32))
    with pytest.raises(Exception, match="too short"):
        client.predict(handle_file(tmp_path / "short.wav"), "s2s", api_name="/speak")


def test_a_full_server_says_so(house):
    for _ in range(3):
        ask(house.visitor(), "hello", "t2t")
    client = house.visitor()
    with pytest.raises(Exception, match=re.compile("slot|place|busy|full", re.I)):
        client.predict("hello", "t2t", api_name="/write")
    house.visitors[0].predict(api_name="/clear")
    house.served.wait(lambda: house.served.app.admission.taken < 3)
    assert len(ask(client, "hello", "t2t")[0]) == 2
