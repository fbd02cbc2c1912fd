"""The page's list of saved talks, in headless Chromium."""

from speechgpt2.server.config import SessionsConfig
from tests import needs
from tests.server.browser import Browser
from tests.server.conftest import serving
from tests.server.fake import SavingEngine
from tests.server.test_page import change, screenshot, shown_turns, write

pytestmark = needs.tool("chromium")


KEY = "a-long-secret"


def saving(folder, **settings):
    return serving(SavingEngine(), api_keys=(KEY,), sessions=SessionsConfig(str(folder)), **settings)


def talks(page):
    """Return the listed talks: title, facts, buttons."""
    code = """[...document.querySelectorAll('#talks li')].map((row) =>
        [row.querySelector('strong').textContent, row.querySelector('small').textContent,
         [...row.querySelectorAll('button')].map((button) => button.textContent).join()])"""
    return [tuple(talk) for talk in page.evaluate(code)]


def press(page, row, button):
    page.evaluate(f"""[...document.querySelectorAll('#talks li')[{row}].querySelectorAll('button')]
        .find((found) => found.textContent == '{button}').click()""")


def show_talks(page):
    page.evaluate("document.getElementById('talks').hidden || document.getElementById('talks-button').click()")
    page.evaluate("document.getElementById('talks-button').click()")
    page.until("!document.getElementById('talks').hidden")


def ask_in_writing(page, words, turns):
    change(page, "responses", "text")
    write(page, words)
    page.until(f"document.querySelectorAll('.turn.assistant:not(.pending)').length == {turns}", 60)
    page.until("document.getElementById('stop').hidden", 60)


def test_saved_talks_are_listed_resumed_and_deleted(tmp_path):
    folder = tmp_path / "talks"
    with Browser(tmp_path) as page:
        with saving(folder) as served:
            page.open(served.http, 390, 800, phone=True)
            page.until("document.title.includes('mini')")
            page.evaluate("document.getElementById('talks-button').click()")
            page.until("document.getElementById('status').textContent.includes('needs an API key')")
            page.evaluate(f"document.getElementById('key').value = '{KEY}'")
            show_talks(page)
            assert "There are none yet" in page.evaluate("document.getElementById('talks').textContent")
            change(page, "style", "whisper")
            ask_in_writing(page, "first words of a long talk " * 5, 1)
            show_talks(page)
            [(title, facts, buttons)] = talks(page)
            assert title.startswith("first words of a long talk first") and len(title) <= 80
            assert facts.endswith("· open") and buttons == "Delete"
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
            before = shown_turns(page)
        page.until("document.getElementById('status').classList.contains('error')")
        with saving(folder, port=served.port) as served:  # the server was restarted
            ask_in_writing(page, "second", 2)
            assert shown_turns(page)[:2] == before[:2]
            page.evaluate("document.getElementById('clear').click()")
            page.until("document.querySelectorAll('.turn').length == 0")
            change(page, "style", "")
            ask_in_writing(page, "another talk", 1)
            show_talks(page)
            assert [(title[:10], buttons) for title, _, buttons in talks(page)] == [
                ("another ta", "Delete"),
                ("first word", "Go on,Delete"),
            ]
            screenshot(page, "talks-phone")
            press(page, 1, "Go on")
            page.until("document.querySelectorAll('.turn').length == 4", 30)
            assert page.evaluate("document.getElementById('style').value") == "whisper"  # as it was saved
            assert [role for role, _, _ in shown_turns(page)] == ["user", "assistant", "user", "assistant"]
            ask_in_writing(page, "third", 3)
            for _ in range(2):  # the open talk, too
                show_talks(page)
                count = len(talks(page))
                press(page, 0, "Delete")
                press(page, 0, "Really?")
                page.until(f"document.querySelectorAll('#talks li').length == {count - 1}", 30)
            assert not list(folder.glob("*.jsonl")) and shown_turns(page) == []
            assert not page.evaluate("localStorage.getItem('settings').includes('whisper')")


def test_page_of_a_server_that_saves_nothing_has_no_list(tmp_path, served):
    with Browser(tmp_path) as page:
        page.open(served.http)
        page.until("document.title.includes('mini')")
        assert page.evaluate("document.getElementById('talks-button').hidden")
