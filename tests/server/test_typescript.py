"""The example in TypeScript: compiled by tsc, run by Node with openai-node, over wss."""

import os
import subprocess
from pathlib import Path

import soundfile

from speechgpt2 import audio
from speechgpt2.server import certificates
from tests import needs
from tests.server.conftest import serving, voice

FOLDER = Path(__file__).parents[2] / "examples" / "typescript"
TSC = FOLDER / "node_modules" / ".bin" / "tsc"


@needs.condition(TSC.is_file(), "npm install in examples/typescript")
@needs.extra("server", "cryptography")
def test_typescript_example(tmp_path):
    compiled = subprocess.run([TSC, "--outDir", FOLDER / "dist"], cwd=FOLDER, capture_output=True, text=True)
    assert compiled.returncode == 0, compiled.stdout
    audio.save(tmp_path / "question.wav", voice(0.7))
    certificate, key = certificates.self_signed(tmp_path)
    with serving(ssl_certfile=str(certificate), ssl_keyfile=str(key)) as served:
        environment = {"NODE_EXTRA_CA_CERTS": str(certificate), "SG2_URL": f"https://localhost:{served.port}/v1"}
        command = ["node", FOLDER / "dist" / "talk.js", tmp_path / "question.wav", tmp_path / "answer.wav"]
        result = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("you: 0.7 s of speech\nsg2: you said 0.7 s of speech and I answer")
    pcm, rate = soundfile.read(tmp_path / "answer.wav")
    assert rate == 24_000 and len(pcm) == 2880 * len(result.stdout.split("sg2: ")[1].split())
