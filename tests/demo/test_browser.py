"""The demo as a visitor sees it, in headless Chromium: writing, speaking, a file, a greeting, two tabs."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from speechgpt2 import audio
from tests import needs
from tests.demo.test_command import free_port
from tests.server.browser import Browser
from tests.server.conftest import serving, silence, voice

needs.module("gradio", "demo")

from speechgpt2.demo import app
from speechgpt2.demo.greetings import Greeting
from speechgpt2.demo.talk import Wire

LOOKS = os.environ.get("SG2_SCREENSHOTS")  # a folder for pictures, to look at
ANSWER = "and I answer that in some words more than you may want to hear"
SPEAK, WRITE = 0, 2  # the modes by their place: it speaks in both
TALK = """[...document.querySelectorAll('[data-testid=user], [data-testid=bot]')]
    .map((line) => [line.dataset.testid, line.innerText.trim()])"""


pytestmark = needs.tool("chromium", "ffmpeg")


@pytest.fixture(scope="module")
def house():
    greetings = [Greeting("Hello!", np.zeros((20, 3), np.int64), lambda codes: voice(len(codes) * 0.04))]
    with serving(slots=3) as served:
        blocks = app.page(Wire(served.http), greetings)
        served.page = app.launch(blocks, "127.0.0.1", free_port())
        yield served
        blocks.close(verbose=False)


@pytest.fixture
def page(tmp_path, house):
    audio.save(tmp_path / "microphone.wav", np.concatenate([voice(1.5), silence(30.0)]))
    with Browser(tmp_path, tmp_path / "microphone.wav") as browser:
        come(browser, house)
        yield browser
    house.wait(lambda: not house.engine.open_sessions, 20)  # closing the page has given all places back


def come(page, house):
    page.open(house.page, 1100, 900)
    page.until("!!document.querySelector('button.record')?.offsetParent")


def tab(page, house):
    """A new tab, which is talked to from now on; returns what brings the last one back."""
    last, page.session = page.session, None
    target = page.call("Target.createTarget", url="about:blank")["targetId"]
    page.session = page.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    page.call("Page.enable")
    come(page, house)
    return last


def look(page, name):
    if LOOKS:
        page.screenshot(Path(LOOKS) / f"demo-{name}.png")


def choose(page, mode):
    page.evaluate(f"document.querySelectorAll('input[type=radio]')[{mode}].click()")
    page.until(f"!!document.querySelector('{'textarea' if mode >= WRITE else 'button.record'}')?.offsetParent")


def press(page, words):
    page.evaluate(f"[...document.querySelectorAll('button')].find((b) => b.innerText.trim() == '{words}').click()")


def click(page, selector):
    """With the mouse, for what listens to more than a click."""
    x, y = page.evaluate(f"""(() => {{
        const place = document.querySelector('{selector}').getBoundingClientRect();
        return [place.x + place.width / 2, place.y + place.height / 2];
    }})()""")
    for kind in ("mousePressed", "mouseReleased"):
        page.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)


def write(page, text):
    page.evaluate("document.querySelector('textarea').focus()")
    page.call("Input.insertText", text=text)
    press(page, "Send")


def talk(page):
    return [tuple(line) for line in page.evaluate(TALK)]


def until_said(page, last, seconds=30):
    page.wait(lambda: (lines := talk(page)) and lines[-1] == ("bot", last), seconds, last)


def test_what_is_written_is_answered_in_words_and_sound_as_they_are_made(page):
    choose(page, WRITE)
    question = "a slow question" + " with many words" * 25  # comes back in the answer: ten seconds of it
    write(page, question)
    page.until("[...document.querySelectorAll('audio')].some((a) => !a.paused && a.currentTime > 0.2)")
    shown = talk(page)
    assert shown[0] == ("user", question) and shown[1][1].startswith("you said a slow")
    assert not shown[1][1].endswith("hear")  # it sounds before it is finished
    look(page, "answering")
    until_said(page, f"you said {question} {ANSWER}")
    assert page.evaluate("document.querySelector('textarea').value") == ""
    write(page, "another slow question")
    page.until(f"({TALK}).length == 4 && ({TALK})[3][1].split(' ').length > 3")
    press(page, "Stop the answer")
    page.until(f"({TALK})[3][1].endsWith('…')")
    look(page, "stopped")


def test_a_microphone_and_a_file(page, house, tmp_path):
    page.evaluate("document.querySelector('button.record').click()")
    page.until("!!document.querySelector('button.stop-button')?.offsetParent")
    time.sleep(2.0)
    look(page, "recording")
    page.evaluate("document.querySelector('button.stop-button').click()")
    page.wait(lambda: talk(page) and talk(page)[-1][1].endswith(ANSWER), 30, "an answer to the microphone")
    assert talk(page)[0][0] == "user" and talk(page)[0][1].endswith("s of speech")

    page.until("!!document.querySelector('button[aria-label=\"Upload file\"]')?.offsetParent")  # ready for the next
    page.evaluate("document.querySelector('button[aria-label=\"Upload file\"]').click()")
    page.until("!!document.querySelector('input[type=file]')")
    audio.save(tmp_path / "question.wav", voice(1.2))
    node = page.call("Runtime.evaluate", expression="document.querySelector('input[type=file]')")["result"]["objectId"]
    page.call("DOM.setFileInputFiles", files=[str(tmp_path / "question.wav")], objectId=node)
    until_said(page, f"you said 1.2 s of speech {ANSWER}")
    assert len(talk(page)) == 4
    look(page, "spoken")


def test_a_greeting_is_played_and_begins_the_talk(page, house):
    click(page, "input[role=combobox]")
    page.until("!!document.querySelector('[role=option]')")
    click(page, "[role=option]:nth-of-type(2)")
    until_said(page, "Hello!")
    page.until(
        "[...document.querySelectorAll('*')].some((e) => e.shadowRoot?.querySelector('audio')?.currentTime > 0.7)"
    )
    look(page, "greeting")
    choose(page, WRITE)
    write(page, "thanks")
    until_said(page, f"you said thanks {ANSWER}")
    assert house.engine.open_sessions[-1].settings.greeting.text == "Hello!"


def test_two_tabs_are_two_visitors(page, house):
    choose(page, WRITE)
    write(page, "my secret is blue")
    until_said(page, f"you said my secret is blue {ANSWER}")
    first = tab(page, house)
    choose(page, WRITE)
    write(page, "hello")
    until_said(page, f"you said hello {ANSWER}")
    assert "secret" not in str(talk(page)) and len(talk(page)) == 2
    page.session = first
    page.call("Page.bringToFront")
    write(page, "again")
    until_said(page, f"you said again {ANSWER}")
    assert [words for role, words in talk(page) if role == "user"] == ["my secret is blue", "again"]
    press(page, "Clear the talk")
    page.until(f"({TALK}).length == 0")
