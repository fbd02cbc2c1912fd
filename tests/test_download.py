"""Downloads: resumed where they broke off, checked, and never left half-written under their name."""

from __future__ import annotations

import hashlib
import http.server
import threading
from dataclasses import replace

import pytest

from speechgpt2.download import RemoteFile, cache_folder
from speechgpt2.errors import UserError

CONTENT = bytes(range(256)) * 40


class Flaky(http.server.BaseHTTPRequestHandler):
    """Serves `CONTENT`, `limit` bytes a request; knows ranges unless told not to."""

    limit, ranges = len(CONTENT), True
    asked: list[str | None]

    def do_GET(self):
        wanted = self.headers["Range"]
        self.asked.append(wanted)
        first = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges else 0
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(CONTENT) - first))
        self.end_headers()
        self.wfile.write(CONTENT[first : first + self.limit])

    def log_message(self, *_):
        pass


@pytest.fixture
def file():
    Flaky.limit, Flaky.ranges, Flaky.asked = len(CONTENT), True, []
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Flaky)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{running.server_port}/model.bin"
    yield RemoteFile(url, hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))
    running.shutdown()
    running.server_close()


def test_file_is_downloaded_once_and_announced(file, tmp_path, capsys):
    path = file.fetch(tmp_path / "new", "a model, Apache-2.0")
    assert path.read_bytes() == CONTENT and path.name == "model.bin"
    assert "a model, Apache-2.0" in capsys.readouterr().err
    assert file.fetch(tmp_path / "new", "a model") == path
    assert len(Flaky.asked) == 1 and not capsys.readouterr().err


@pytest.mark.parametrize("ranges", [True, False])
def test_broken_download_goes_on(file, tmp_path, ranges):
    Flaky.limit, Flaky.ranges = 4000, ranges
    with pytest.raises(UserError, match=r"4000 of 10240 bytes .* run the command again"):
        file.fetch(tmp_path, "a model")
    assert not (tmp_path / "model.bin").exists()
    Flaky.limit = len(CONTENT)
    assert file.fetch(tmp_path, "a model").read_bytes() == CONTENT
    assert Flaky.asked == [None, "bytes=4000-"]


def test_another_content_is_refused_and_deleted(file, tmp_path):
    with pytest.raises(UserError, match="not the expected file"):
        replace(file, sha256="0" * 64).fetch(tmp_path, "a model")
    assert list(tmp_path.iterdir()) == []


def test_file_in_place_is_checked(file, tmp_path):
    (tmp_path / "model.bin").write_bytes(CONTENT[:-1])
    with pytest.raises(UserError, match="cut short, 10239 of 10240"):
        file.fetch(tmp_path, "a model")


def test_unreachable_server_is_a_clear_error(tmp_path):
    file = RemoteFile("http://127.0.0.1:9/model.bin", "0" * 64, 10)
    with pytest.raises(UserError, match="0 of 10 bytes"):
        file.fetch(tmp_path, "a model")


def test_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "speechgpt2"
