"""`sg2 serve` and `sg2 talk` from a shell."""

import json
import logging
import re
import socket

import numpy as np
import pytest
from typer.testing import CliRunner

from speechgpt2 import audio
from speechgpt2.cli import app
from tests.server.conftest import open_client, serving, silence, voice


def sg2(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"SG2_API_KEY": None})
    assert result.exit_code == code, (result.output, result.exception)
    return result


def test_invalid_serve_options(tmp_path):
    assert "did you mean 'slots'" in (fails("serve", "--config", write(tmp_path / "s.yaml", "slotz: 1")))
    assert "without API keys lets anyone connect" in fails("serve", "--host", "0.0.0.0")
    assert "no such file" in fails("serve", "--config", tmp_path / "absent.yaml")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "cannot listen on 127.0.0.1" in fails("serve", "--port", taken.getsockname()[1])


def write(path, text):
    path.write_text(text)
    return path


def fails(*arguments):
    lines = sg2(*arguments, code=2).stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


def test_talk_saves_the_response(tmp_path, served):
    audio.save(tmp_path / "q.wav", np.concatenate([voice(0.4), silence(0.1)]))
    out = tmp_path / "answer.wav"
    result = sg2("talk", tmp_path / "q.wav", "--url", served.http, "-o", out)
    assert re.search(r"you: [\d.]+ s of speech\nsg2: you said [\d.]+ s of speech and I answer .* hear\n", result.stdout)
    assert len(audio.load(out)) == 20 * 2880


def test_talk_interrupts(tmp_path, served):
    audio.save(tmp_path / "q.wav", np.concatenate([voice(0.4), silence(0.1)]))
    out = tmp_path / "answers.wav"
    result = sg2("talk", tmp_path / "q.wav", tmp_path / "q.wav", "--interrupt", 0.5, "--url", served.http, "-o", out)
    assert "[interrupted after 0." in result.stdout or "[interrupted after 1." in result.stdout
    assert 20 * 2880 + 7200 < len(audio.load(out)) < 34 * 2880


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to say"),
        (["--text", "x", "-o", "x.txt"], "the suffix must be"),
        (["--text", "x", "--url", "ws://127.0.0.1:9"], "no server at"),
        (["absent.wav"], "no such file"),
    ],
)
def test_invalid_talk_options(arguments, message):
    assert message in fails("talk", *arguments)


def test_talk_with_a_wrong_key():
    with serving(api_keys=("a-good-key",)) as served:
        assert "Incorrect or missing API key" in fails("talk", "--text", "x", "--url", served.http)


def test_transcripts_are_logged_only_on_request(caplog):
    caplog.set_level(logging.INFO, logger="sg2")
    for enabled in (False, True):
        with serving(log_transcripts=enabled) as served, open_client(served) as client:
            client.update(output_modalities=["text"])
            client.write("secret words")
            client.until("response.done")
        served.wait(lambda served=served: not served.app.gateway.admission.active)
        logged = [json.dumps(getattr(record, "fields", {})) for record in caplog.records]
        assert any("received_seconds" in fields for fields in logged)
        assert any("secret words" in fields for fields in logged) == enabled
