"""The demo in headless Chromium: writing, speaking, a file, a greeting, two tabs."""

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
from tests.server.fake import FakeEngine

needs.module("gradio", "demo")

from speechgpt2.demo import app
from speechgpt2.demo.connection import ServerAddress
from speechgpt2.demo.greetings import Greeting
from speechgpt2.duplex.protocol import EngineVoice

SCREENSHOTS = os.environ.get("SG2_SCREENSHOTS")  # a folder for screenshots
ANSWER = "and I answer that in some words more than you may want to hear"
SPEAK, WRITE = 0, 2  # the modes by their place: it speaks in both
TRANSCRIPT = """[...document.querySelectorAll('[data-testid=user], [data-testid=bot]')]
    .map((line) => [line.dataset.testid, line.innerText.trim()])"""


pytestmark = needs.tool("chromium", "ffmpeg")


@pytest.fixture(scope="module")
def demo():
    greetings = [Greeting("anna", "Hello!", lambda: voice(0.8))]
    with serving(FakeEngine(3, [EngineVoice("anna", "Hello!")]), slots=3) as served:
        blocks = app.build_page(ServerAddress(served.http), greetings)
        served.page = app.launch(blocks, "127.0.0.1", free_port())
        yield served
        blocks.close(verbose=False)


@pytest.fixture
def page(tmp_path, demo):
    audio.save(tmp_path / "microphone.wav", np.concatenate([voice(1.5), silence(30.0)]))
    with Browser(tmp_path, tmp_path / "microphone.wav") as browser:
        open_page(browser, demo)
        yield browser
    demo.wait(lambda: not demo.engine.open_sessions, 20)  # closing the page has released all slots


def open_page(page, demo):
    page.open(demo.page, 1100, 900)
    page.until("!!document.querySelector('button.record')?.offsetParent")


def open_tab(page, demo):
    """Open a tab and switch to it; returns the session id of the last one."""
    last, page.session = page.session, None
    target = page.call("Target.createTarget", url="about:blank")["targetId"]
    page.session = page.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    page.call("Page.enable")
    open_page(page, demo)
    return last


def screenshot(page, name):
    if SCREENSHOTS:
        page.screenshot(Path(SCREENSHOTS) / f"demo-{name}.png")


def choose(page, mode):
    page.evaluate(f"document.querySelectorAll('input[type=radio]')[{mode}].click()")
    page.until(f"!!document.querySelector('{'textarea' if mode >= WRITE else 'button.record'}')?.offsetParent")


def press(page, words):
    page.evaluate(f"[...document.querySelectorAll('button')].find((b) => b.innerText.trim() == '{words}').click()")


def click(page, selector):
    """Click with the mouse, for elements that need more than a click event."""
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


def transcript(page):
    return [tuple(line) for line in page.evaluate(TRANSCRIPT)]


def until_said(page, last, seconds=30):
    page.wait(lambda: (lines := transcript(page)) and lines[-1] == ("bot", last), seconds, last)


def test_written_turn_streams_text_and_audio(page):
    choose(page, WRITE)
    question = "a slow question" + " with many words" * 25  # comes back in the answer: ten seconds of it
    write(page, question)
    page.until("[...document.querySelectorAll('audio')].some((a) => !a.paused && a.currentTime > 0.2)")
    shown = transcript(page)
    assert shown[0] == ("user", question) and shown[1][1].startswith("you said a slow")
    assert not shown[1][1].endswith("hear")  # it sounds before it is finished
    screenshot(page, "answering")
    until_said(page, f"you said {question} {ANSWER}")
    assert page.evaluate("document.querySelector('textarea').value") == ""
    write(page, "another slow question")
    page.until(f"({TRANSCRIPT}).length == 4 && ({TRANSCRIPT})[3][1].split(' ').length > 3")
    press(page, "Stop the response")
    page.until(f"({TRANSCRIPT})[3][1].endsWith('…')")
    screenshot(page, "stopped")


def test_microphone_and_upload(page, demo, tmp_path):
    page.evaluate("document.querySelector('button.record').click()")
    page.until("!!document.querySelector('button.stop-button')?.offsetParent")
    time.sleep(2.0)
    screenshot(page, "recording")
    page.evaluate("document.querySelector('button.stop-button').click()")
    page.wait(lambda: transcript(page) and transcript(page)[-1][1].endswith(ANSWER), 30, "an answer to the microphone")
    assert transcript(page)[0][0] == "user" and transcript(page)[0][1].endswith("s of speech")

    page.until("!!document.querySelector('button[aria-label=\"Upload file\"]')?.offsetParent")  # ready for the next
    page.evaluate("document.querySelector('button[aria-label=\"Upload file\"]').click()")
    page.until("!!document.querySelector('input[type=file]')")
    audio.save(tmp_path / "question.wav", voice(1.2))
    node = page.call("Runtime.evaluate", expression="document.querySelector('input[type=file]')")["result"]["objectId"]
    page.call("DOM.setFileInputFiles", files=[str(tmp_path / "question.wav")], objectId=node)
    until_said(page, f"you said 1.2 s of speech {ANSWER}")
    assert len(transcript(page)) == 4
    screenshot(page, "spoken")


def test_greeting(page, demo):
    click(page, "input[role=combobox]")
    page.until("!!document.querySelector('[role=option]')")
    click(page, "[role=option]:nth-of-type(2)")
    until_said(page, "Hello!")
    page.until(
        "[...document.querySelectorAll('*')].some((e) => e.shadowRoot?.querySelector('audio')?.currentTime > 0.7)"
    )
    screenshot(page, "greeting")
    choose(page, WRITE)
    write(page, "thanks")
    until_said(page, f"you said thanks {ANSWER}")
    assert demo.engine.open_sessions[-1].settings.voice == "anna"


def test_two_tabs_are_two_sessions(page, demo):
    choose(page, WRITE)
    write(page, "my secret is blue")
    until_said(page, f"you said my secret is blue {ANSWER}")
    first = open_tab(page, demo)
    choose(page, WRITE)
    write(page, "hello")
    until_said(page, f"you said hello {ANSWER}")
    assert "secret" not in str(transcript(page)) and len(transcript(page)) == 2
    page.session = first
    page.call("Page.bringToFront")
    write(page, "again")
    until_said(page, f"you said again {ANSWER}")
    assert [words for role, words in transcript(page) if role == "user"] == ["my secret is blue", "again"]
    press(page, "Clear the conversation")
    page.until(f"({TRANSCRIPT}).length == 0")


def test_live_page_is_a_tab_and_answers(tmp_path):
    port = free_port()
    with serving(FakeEngine(1), slots=1, framing_origins=(f"http://127.0.0.1:{port}",)) as served:
        blocks = app.build_page(ServerAddress(served.http), live_page=served.http, framed=True)
        try:
            address = app.launch(blocks, "127.0.0.1", port)
            with Browser(tmp_path) as browser:
                browser.open(address)
                browser.until("[...document.querySelectorAll('button[role=tab]')].length == 2")
                browser.evaluate("document.querySelectorAll('button[role=tab]')[1].click()")
                browser.until("!!document.querySelector('iframe')?.offsetParent")
                in_frame = frame_of(browser, served.http)
                browser.until("document.title.includes('mini')", context=in_frame)
                browser.evaluate(WRITE_HELLO, in_frame)
                answer = "document.querySelector('.turn.assistant')?.textContent.includes('hello')"
                browser.until(answer, context=in_frame)
                screenshot(browser, "live")
                browser.evaluate("document.getElementById('mic').click()", in_frame)
                browser.until("document.getElementById('mic').getAttribute('aria-pressed') == 'true'", context=in_frame)
        finally:
            blocks.close(verbose=False)


WRITE_HELLO = """(() => {
    document.getElementById('text').value = 'hello';
    document.getElementById('text-form').requestSubmit();
})()"""


def frame_of(browser, url):
    """Return the execution context of the frame that shows `url`."""

    def find():
        frames = browser.call("Page.getFrameTree")["frameTree"].get("childFrames", [])
        return next((frame["frame"]["id"] for frame in frames if frame["frame"]["url"].startswith(url)), None)

    id = browser.wait(find, 20, f"a frame of {url}")
    return browser.call("Page.createIsolatedWorld", frameId=id)["executionContextId"]
