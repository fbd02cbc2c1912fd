"""Headless Chromium, controlled by its DevTools protocol."""

import base64
import json
import shutil
import subprocess
import time
from pathlib import Path

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--mute-audio", "--hide-scrollbars"),
    *("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream", "--remote-debugging-port=0"),
    "--autoplay-policy=no-user-gesture-required",
]


class Browser:
    """One page. `with Browser(folder, microphone=wav) as page: page.open(url); page.evaluate("1 + 1")`"""

    def __init__(self, folder: Path, microphone: Path | None = None, flags=()):
        program = shutil.which("chromium") or shutil.which("google-chrome")
        assert program is not None, 'mark tests of a browser with needs.tool("chromium")'
        self.folder = folder
        flags = [*FLAGS, *flags, f"--user-data-dir={folder / 'profile'}"]
        if microphone is not None:
            flags.append(f"--use-file-for-fake-audio-capture={microphone}%noloop")
        log = (folder / "chromium.log").open("wb")
        self.process = subprocess.Popen([program, *flags, "about:blank"], stdout=log, stderr=log)
        self.number = 0

    def __enter__(self):
        from websockets.sync.client import connect

        port_file = self.folder / "profile" / "DevToolsActivePort"
        self.wait(lambda: port_file.exists() and len(port_file.read_text().split()) == 2, 60, "chromium to start")
        port, path = port_file.read_text().split()
        self.socket = connect(f"ws://127.0.0.1:{port}{path}", max_size=None, proxy=None)
        self.session = None
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        self.call("Page.enable")
        return self

    def __exit__(self, *_):
        self.socket.close()
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def call(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        self.socket.send(json.dumps(message))
        while True:
            answer = json.loads(self.socket.recv(timeout=60))
            if answer.get("id") == self.number:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def open(self, url, width=1100, height=760, phone=False):
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        self.call("Page.navigate", url=url)
        self.until("document.readyState == 'complete'")

    def evaluate(self, code, context=None):
        where = {} if context is None else {"contextId": context}
        options = {"returnByValue": True, "awaitPromise": True, "userGesture": True, **where}
        result = self.call("Runtime.evaluate", expression=code, **options)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def until(self, code, seconds=30, context=None):
        return self.wait(lambda: self.evaluate(code, context), seconds, code)

    def wait(self, ready, seconds, what):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if value := ready():
                return value
            time.sleep(0.05)
        raise AssertionError(f"waited {seconds} s for {what}")

    def screenshot(self, path):
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
