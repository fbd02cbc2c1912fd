"""The page in headless Chromium: speech, barge-in, text, and a phone's width."""

import base64
import os
from pathlib import Path

import numpy as np
import pytest

from speechgpt2 import audio
from speechgpt2.duplex.protocol import EngineVoice
from speechgpt2.style import named_style
from speechgpt2.types import SAMPLE_RATE
from tests import needs
from tests.server.browser import Browser
from tests.server.conftest import serving, silence, voice
from tests.server.fake import FakeEngine

SCREENSHOTS = os.environ.get("SG2_SCREENSHOTS")  # a folder for screenshots


pytestmark = needs.tool("chromium")


@pytest.fixture(scope="module")
def served():
    with serving() as running:
        yield running


def screenshot(page, name):
    if SCREENSHOTS:
        page.screenshot(Path(SCREENSHOTS) / f"{name}.png")


def shown_turns(page):
    """Return the turns on the page: (role, text, remark)."""
    code = """[...document.querySelectorAll('.turn')].map((turn) =>
        [turn.classList.contains('user') ? 'user' : 'assistant', turn.firstChild.textContent,
         turn.querySelector('small')?.textContent ?? ''])"""
    return [tuple(turn) for turn in page.evaluate(code)]


def test_speech_and_barge_in(tmp_path, served):
    talk = [silence(1.0), voice(0.6), silence(2.2), voice(0.7), silence(4.5), voice(0.6), silence(8.0)]
    audio.save(tmp_path / "microphone.wav", np.concatenate(talk))
    with Browser(tmp_path, tmp_path / "microphone.wav") as page:
        page.open(served.http)
        page.until("document.title.includes('mini')")
        page.evaluate("document.getElementById('mic').click()")
        page.until("document.querySelectorAll('.turn small').length >= 1", 40)  # the first answer was interrupted
        page.until("document.querySelectorAll('.turn.user').length >= 3", 40)
        screenshot(page, "talk")
        page.until("document.getElementById('latency').dataset.milliseconds !== undefined", 20)
        shown = shown_turns(page)
        assert [role for role, _, _ in shown[:4]] == ["user", "assistant", "user", "assistant"]
        assert "s of speech" in shown[0][1] and shown[1][1].startswith("you said") and shown[1][2] == "interrupted"
        unheard = page.evaluate("document.querySelector('.turn.assistant .unheard')?.textContent")
        assert unheard is None or shown[1][1].endswith(unheard)
        assert float(page.evaluate("document.getElementById('latency').dataset.milliseconds")) < 5000
        memory = served.engine.sessions[-1].memory
        cut = next(said for said in memory.values() if said.startswith("assistant"))
        assert 2 <= len(cut.split()) <= 25  # what was heard of it in some two seconds, no more
        page.evaluate("document.getElementById('mic').click()")
        page.until("document.getElementById('mic').getAttribute('aria-pressed') == 'false'")


@needs.extra("media", "av")
def test_audio_of_a_talk_is_saved(tmp_path, served):
    """The file holds the user's turn, and the answer after it."""
    audio.save(tmp_path / "microphone.wav", np.concatenate([silence(1.0), voice(0.8), silence(30.0)]))
    with Browser(tmp_path, tmp_path / "microphone.wav") as page:
        page.open(served.http)
        page.until("document.title.includes('mini')")
        page.evaluate("document.getElementById('mic').click()")
        page.until("document.getElementById('status').textContent == 'speaking'", 40)
        page.until("document.getElementById('status').textContent == 'listening'", 40)
        page.evaluate("document.getElementById('mic').click()")
        pcm = saved_sound(page, tmp_path)
    seconds = len(pcm) / SAMPLE_RATE
    assert 4 < seconds < 60
    loud = np.abs(pcm[: len(pcm) // 2400 * 2400].reshape(-1, 2400)).max(1) > 0.02  # blocks of 0.1 s
    assert loud[:30].sum() >= 5 and loud.sum() >= 15


def saved_sound(page, folder):
    """Press the button, and return what the file holds."""
    page.evaluate("""HTMLAnchorElement.prototype.click = function () { window.savedName = this.download; };
    URL.createObjectURL = (blob) => {
        blob.arrayBuffer().then((buffer) => {
            window.saved = btoa(Array.from(new Uint8Array(buffer), (byte) => String.fromCharCode(byte)).join(''));
        });
        return '#';
    }; 0""")
    page.evaluate("document.getElementById('save-sound').click()")
    page.until("window.saved")
    assert page.evaluate("window.savedName") == "talk.webm"
    (folder / "talk.webm").write_bytes(base64.b64decode(page.evaluate("window.saved")))
    return audio.load(folder / "talk.webm")


def choose_voice(page, name):
    page.evaluate(f"""(() => {{
        document.getElementById('voice').value = '{name}';
        document.getElementById('voice').dispatchEvent(new Event('change'));
    }})()""")


def test_voice_is_chosen_and_kept_once_the_model_has_spoken(tmp_path):
    voices = (EngineVoice("anna", "Hello!"), EngineVoice("ben", "Good day!", default=True))
    with serving(FakeEngine(4, voices)) as served, Browser(tmp_path) as page:
        page.open(served.http, 390, 800)
        page.until("document.title.includes('mini')")
        assert page.evaluate("[...document.getElementById('voice').options].map((o) => o.value).join()") == "ben,anna"
        choose_voice(page, "anna")
        write(page, "hello")
        page.until("document.querySelectorAll('.turn.assistant').length == 1", 20)
        page.until("document.getElementById('stop').hidden", 30)
        assert served.engine.sessions[-1].settings.voice == "anna"
        choose_voice(page, "ben")
        page.until("document.body.textContent.includes('The next talk has the other voice')")
        assert not page.evaluate("document.body.textContent.includes('Cannot update')")
        assert served.engine.sessions[-1].settings.voice == "anna"
        page.evaluate("document.getElementById('clear').click()")
        served.wait(lambda: not served.engine.open_sessions)
        write(page, "hello")
        served.wait(lambda: served.engine.open_sessions and served.engine.sessions[-1].settings.voice == "ben")


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 800)])
def test_settings_are_whole_before_a_talk(tmp_path, served, width, height):
    with Browser(tmp_path) as page:
        page.open(served.http, width, height, phone=width < 500)
        page.until("document.title.includes('mini')")
        page.evaluate("document.getElementById('settings-button').click()")
        panel = "document.getElementById('settings')"
        assert page.evaluate(f"{panel}.scrollHeight") == page.evaluate(f"{panel}.clientHeight") > 300


def test_phone_layout_text_stop_greeting_and_clear(tmp_path, served):
    with Browser(tmp_path) as page:
        page.open(served.http, 390, 800, phone=True)
        page.until("document.title.includes('mini')")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.evaluate("document.getElementById('settings-button').click()")
        screenshot(page, "settings-phone")
        assert page.evaluate("document.querySelector('[data-choice=voice]').hidden")  # there is nothing to choose
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        wav = tmp_path / "hello.wav"
        audio.save(wav, voice(0.5))
        data = base64.b64encode(wav.read_bytes()).decode()
        page.evaluate(f"""(() => {{
            const bytes = Uint8Array.from(atob('{data}'), (c) => c.charCodeAt(0));
            const chosen = new DataTransfer();
            chosen.items.add(new File([bytes], 'hello.wav', {{ type: 'audio/wav' }}));
            document.getElementById('greeting').files = chosen.files;
            document.getElementById('greeting-text').value = 'Welcome';
            document.getElementById('settings-button').click();
        }})()""")

        write(page, "slow question")
        page.until("document.querySelectorAll('.turn.assistant').length == 2", 20)
        page.until("!document.getElementById('stop').hidden")
        page.until("document.querySelectorAll('.turn.assistant')[1].textContent.split(' ').length > 5", 20)
        screenshot(page, "answer-phone")
        page.evaluate("document.getElementById('stop').click()")
        page.until("document.getElementById('stop').hidden")
        page.until("document.querySelectorAll('.turn small').length == 1")
        shown = shown_turns(page)
        assert shown[0] == ("assistant", "Welcome", "") and shown[1] == ("user", "slow question", "")
        assert served.engine.sessions[-1].settings.greeting.text == "Welcome"

        page.evaluate("document.getElementById('clear').click()")
        page.until("document.querySelectorAll('.turn').length == 0")
        served.wait(lambda: not served.engine.open_sessions)
        page.evaluate("document.getElementById('responses').value = 'text'")
        page.evaluate("document.getElementById('greeting').value = ''")
        write(page, "again")
        page.until(
            "document.querySelectorAll('.turn.assistant').length == 1 && !document.querySelector('.pending')", 20
        )
        served.wait(lambda: served.engine.sessions[-1].memory[2].endswith("hear"))
        assert shown_turns(page)[0][1] == "again" and not served.engine.sessions[-1].settings.speak


def write(page, words):
    page.evaluate(f"""(() => {{
        document.getElementById('text').value = {words!r};
        document.getElementById('text-form').requestSubmit();
    }})()""")


def test_missing_key_is_shown(tmp_path):
    with serving(api_keys=("a-good-key",)) as served, Browser(tmp_path) as page:
        page.open(served.http)
        page.until("document.title.includes('mini')")
        assert not page.evaluate("document.getElementById('key-label').hidden")
        write(page, "hello")
        page.until("document.getElementById('status').textContent.includes('needs an API key')")
        assert not page.evaluate("document.getElementById('settings').hidden")  # the field is shown
        page.evaluate("document.getElementById('key').value = 'a-bad-key-'")
        write(page, "hello")
        page.until("document.getElementById('status').textContent.includes('does not accept this API key')")
        page.evaluate("document.getElementById('key').value = 'a-good-key'")
        write(page, "hello")
        page.until("document.querySelectorAll('.turn.assistant').length == 1")


OTHER_NAME = ["--host-resolver-rules=MAP voice.test 127.0.0.1", "--ignore-certificate-errors"]


def test_page_without_https_plays_typed_answers(tmp_path):
    """A phone in the local network has no secure context: no microphone and no AudioWorklet."""
    with serving(allowed_hosts=("voice.test",)) as served, Browser(tmp_path, flags=OTHER_NAME) as page:
        page.open(f"http://voice.test:{served.port}", 390, 800, phone=True)
        page.until("document.title.includes('mini')")
        assert not page.evaluate("window.isSecureContext")
        assert "HTTPS" in page.evaluate("document.querySelector('.note').textContent")
        screenshot(page, "http-phone")
        page.evaluate("document.getElementById('mic').click()")
        page.until("document.getElementById('status').textContent.includes('HTTPS')")
        page.evaluate("document.querySelector('#examples button').click()")
        page.until("document.getElementById('status').textContent == 'speaking'", 20)
        page.until("document.querySelectorAll('.turn.assistant').length == 1")
        page.until("document.querySelector('.turn.assistant').textContent.split(' ').length > 4", 20)
        page.evaluate("document.getElementById('stop').click()")
        page.until("document.querySelectorAll('.turn small').length == 1")
        cut = [said for said in served.engine.sessions[-1].memory.values() if said.startswith("assistant")][-1]
        assert 1 <= len(cut.split()) < 20


@needs.extra("server", "cryptography")
def test_spoken_turn_over_https_from_another_host(tmp_path):
    from speechgpt2.server.certificates import self_signed

    certificate, key = self_signed(tmp_path / "tls", ("voice.test",))
    audio.save(tmp_path / "microphone.wav", np.concatenate([silence(1.0), voice(0.6), silence(8.0)]))
    tls = {"ssl_certfile": str(certificate), "ssl_keyfile": str(key), "allowed_hosts": ("voice.test",)}
    with serving(**tls) as served, Browser(tmp_path, tmp_path / "microphone.wav", OTHER_NAME) as page:
        page.open(f"https://voice.test:{served.port}")
        page.until("document.title.includes('mini')")
        assert page.evaluate("window.isSecureContext")
        page.evaluate("document.getElementById('mic').click()")
        page.until("document.getElementById('status').textContent == 'speaking'", 30)
        screenshot(page, "https-talk")
        assert "s of speech" in shown_turns(page)[0][1]


def test_settings_are_remembered_without_the_key(tmp_path, served):
    with Browser(tmp_path) as page:
        page.open(served.http)
        page.until("document.title.includes('mini')")
        page.evaluate("""(() => {
            document.getElementById('instructions').value = 'Be brief.';
            document.getElementById('key').value = 'a-good-key';
            document.getElementById('instructions').dispatchEvent(new Event('change'));
        })()""")
        page.open(served.http)
        page.until("document.getElementById('instructions').value == 'Be brief.'")
        assert page.evaluate("document.getElementById('key').value") == ""
        assert "a-good-key" not in page.evaluate("JSON.stringify(localStorage)")
        page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        screenshot(page, "start-dark")


def change(page, id, value):
    page.evaluate(f"""(() => {{
        document.getElementById('{id}').value = '{value}';
        for (const kind of ['input', 'change']) document.getElementById('{id}').dispatchEvent(new Event(kind));
    }})()""")


def test_speed_and_style_are_sent_and_remembered(tmp_path):
    with serving(speed=0.9, style="calm") as served, Browser(tmp_path) as page:
        page.open(served.http)
        page.until("document.title.includes('mini')")
        assert page.evaluate("document.getElementById('speed-shown').textContent") == "0.90 ×"
        write(page, "hello")
        served.wait(lambda: served.engine.open_sessions, 20)
        settings = served.engine.sessions[-1].settings
        assert (settings.speed, settings.style.name) == (0.9, "calm")
        change(page, "style", "whisper")
        change(page, "speed", "1.25")
        served.wait(lambda: served.engine.sessions[-1].settings.speed == 1.25)
        assert served.engine.sessions[-1].settings.style == named_style("whisper")
        change(page, "style", "")
        served.wait(lambda: served.engine.sessions[-1].settings.style == named_style("calm"))
        change(page, "persona", "storyteller")
        served.wait(lambda: served.engine.sessions[-1].settings.style == named_style("slower"))
        change(page, "style", "happy")
        page.open(served.http)
        page.until("document.getElementById('style').value == 'happy'")
        assert page.evaluate("document.getElementById('speed-shown').textContent") == "1.25 ×"


LAYOUTS = {"phone": (390, 844), "desktop": (1280, 800)}
OUTSIDE = """[...document.querySelectorAll('#settings label, #settings button, header *')].filter((element) => {
    const box = element.getBoundingClientRect();
    return box.width && (box.left < 0 || box.right > innerWidth || element.scrollWidth > element.clientWidth + 1);
}).map((element) => element.textContent.trim().slice(0, 30))"""


def test_open_settings_fit_on_phone_and_desktop(tmp_path):
    voices = (
        EngineVoice("anna with a long name of forty letters …", "Hello!"),
        EngineVoice("ben", "Good day!", default=True),
    )
    with serving(FakeEngine(4, voices), api_keys=("a-long-secret",)) as served, Browser(tmp_path) as page:
        for scheme in ("light", "dark"):
            page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            for name, (width, height) in LAYOUTS.items():
                page.open(served.http, width, height, phone=name == "phone")
                page.until("document.title.includes('mini')")
                page.evaluate("document.getElementById('settings-button').click()")
                screenshot(page, f"settings-{name}-{scheme}")
                assert page.evaluate(OUTSIDE) == [] and page.evaluate("document.documentElement.scrollWidth") <= width
                assert page.evaluate("document.getElementById('greeting').clientWidth") >= 290  # shows the file's name
                assert page.evaluate("document.getElementById('hint').offsetParent === null")
                assert page.evaluate("document.querySelector('footer').getBoundingClientRect().bottom <= innerHeight")
                key = page.evaluate("document.getElementById('key').getBoundingClientRect().bottom")
                assert key < 200  # what the server wants first is not below the fold
        assert page.evaluate("document.getElementById('persona').options[0].textContent") == "none"
        page.evaluate("document.getElementById('settings-button').click()")
        assert page.evaluate("document.getElementById('examples').offsetParent !== null")
