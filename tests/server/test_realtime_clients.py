"""Unmodified Realtime clients that install too much for the suite: they are tried where somebody has installed them.

python -m venv clients && clients/bin/pip install pipecat-ai livekit-agents livekit-plugins-openai
cd npm && npm install @openai/agents-realtime zod
SG2_CLIENTS=clients/bin/python SG2_NODE_CLIENTS=npm pytest -m slow tests/server/test_realtime_clients.py
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from speechgpt2 import audio
from tests import needs
from tests.server.conftest import voice

CLIENTS = Path(__file__).parents[1] / "clients"
PYTHON, NODE = os.environ.get("SG2_CLIENTS"), os.environ.get("SG2_NODE_CLIENTS")

pytestmark = pytest.mark.slow


def run(command, path):
    audio.save(path / "question.wav", voice(1.5))
    result = subprocess.run([*command, path / "question.wav"], capture_output=True, text=True, timeout=300)
    lines = result.stdout.splitlines()
    assert result.returncode == 0, (lines, result.stderr[-2000:])
    assert [line.partition(":")[0] for line in lines][1:] == ["voice turn", "interruption", "tool"]
    assert "Paris" in lines[-1] and lines[-1].endswith("result answered")


@needs.condition(bool(PYTHON), "SG2_CLIENTS: a Python with pipecat-ai, livekit-agents and livekit-plugins-openai")
@pytest.mark.parametrize(("name", "path"), [("pipecat_client.py", "ws"), ("livekit_client.py", "http")])
def test_python_client(served, tmp_path, name, path):
    url = served.ws if path == "ws" else f"{served.http}/v1"
    run([PYTHON, CLIENTS / name, url], tmp_path)


@needs.condition(bool(NODE), "SG2_NODE_CLIENTS: a folder with node_modules/@openai/agents-realtime")
def test_agents_realtime(served, tmp_path):
    (tmp_path / "node_modules").symlink_to(Path(NODE).resolve() / "node_modules")
    script = shutil.copy(CLIENTS / "agents_realtime.mjs", tmp_path)
    run(["node", script, served.ws], tmp_path)
