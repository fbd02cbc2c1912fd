"""`sg2 demo` from a shell."""

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from speechgpt2.cli import app
from tests import needs

GOLDEN = Path(__file__).parent.parent / "golden"
GOOD = {"text": "Hello!", "audio": [1, 2, 3] * 9}


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def write(path, *entries):
    path.write_text("".join((entry if isinstance(entry, str) else json.dumps(entry)) + "\n" for entry in entries))
    return path


def fails(*arguments):
    result = CliRunner().invoke(app, ["demo", *map(str, arguments)])
    assert result.exit_code == 2, (result.output, result.exception)
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


@pytest.fixture
def with_ffmpeg(tmp_path, monkeypatch):
    """A program of that name. The command looks for it first; these tests never run it."""
    program = tmp_path / "bin" / "ffmpeg"
    program.parent.mkdir()
    program.touch(0o755)
    monkeypatch.setenv("PATH", str(program.parent))


def test_missing_packages_are_reported(monkeypatch, with_ffmpeg):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert "pip install 'speechgpt2[demo]'" in fails()
    monkeypatch.setenv("PATH", "")
    assert "ffmpeg" in fails()


@needs.extra("demo", "gradio")
def test_wrong_paths_are_reported(tmp_path, with_ffmpeg):
    port = ["--port", free_port()]
    assert "absent.jsonl: no such file" in fails("--greetings", "absent.jsonl", *port)
    assert "absent.pkl: no such file" in fails("--codec_ckpt_path", "absent.pkl", *port)
    assert "absent.yaml: no such file" in fails(
        "--codec_ckpt_path", GOLDEN / "codec" / "codec.pkl", "--codec_config_path", "absent.yaml", *port
    )
    assert "give --codec_ckpt_path" in fails("--codec_config_path", "absent.yaml", *port)
    assert "absent: no such folder" in fails("--model_path", tmp_path / "absent", *port)
    greetings = write(tmp_path / "g.jsonl", {"text": [999_999], "audio": [1, 2, 3] * 3})
    assert "line 1: the model has no token 999999" in fails("--greetings", greetings, *port)
    assert "give --greetings, --greeting-index or --voice to sg2 serve" in fails("--url", "x", "--voice", "a", *port)
    assert "give --sessions to sg2 serve" in fails("--url", "x", "--sessions", tmp_path, *port)
    assert "no server at http://127.0.0.1:9" in fails("--url", "http://127.0.0.1:9", *port)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "cannot listen on 127.0.0.1" in fails("--port", taken.getsockname()[1])


RELEASED = ["--model_path", GOLDEN / "lm", "--codec_ckpt_path", GOLDEN / "codec" / "codec.pkl"]
RELEASED += ["--codec_config_path", GOLDEN / "codec" / "config.yaml"]


@pytest.mark.slow
@needs.extra("demo", "gradio")
@needs.tool("ffmpeg")
@pytest.mark.parametrize("options", [[], RELEASED], ids=["mini", "the released layout"])
def test_demo_process(tmp_path, options):
    """Start the demo, take a turn, stop it with SIGTERM."""
    from gradio_client import Client

    options = [*options, "--port", free_port(), "--greetings", write(tmp_path / "g.jsonl", GOOD)]
    command = [sys.executable, "-c", "from speechgpt2.cli import main; main()", "demo", *map(str, options)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        line = next((line for line in process.stdout if "the demo is at" in line), None)
        assert line, (tmp_path / "log").read_text()
        client = Client(re.search(r"http://\S+", line)[0], verbose=False, download_files=False)
        talk, preview = client.predict(0, api_name="/greet")
        assert talk[0]["content"][0]["text"] == "Hello!" and preview["path"].endswith(".wav")
        job = client.submit("What is two plus three?", "t2t", api_name="/write")
        talk = job.result(120)[0]
        assert [entry["role"] for entry in talk] == ["assistant", "user", "assistant"]
        assert talk[2]["content"][0]["text"].strip(" …")
        process.terminate()
        assert process.wait(30) == 0, (tmp_path / "log").read_text()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
