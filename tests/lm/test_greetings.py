"""Greetings of the released format enter the context patch for patch."""

import json

import numpy as np
import pytest
import torch

from speechgpt2 import hub
from speechgpt2.duplex.protocol import SessionSettings
from speechgpt2.engine.history import History
from speechgpt2.errors import UserError
from speechgpt2.greeting_file import read_entries
from speechgpt2.lm.greetings import RELEASED, model_greetings, read_greetings
from speechgpt2.lm.model import SpeechLM
from tests.lm.test_released import GOLDEN, flat


@pytest.fixture(scope="module")
def prompt():
    return SpeechLM.from_pretrained(GOLDEN, torch.float32, patch_heads=4).prompt


@pytest.fixture
def golden():
    return np.load(GOLDEN / "golden.npz")


@pytest.fixture
def file(tmp_path, golden):
    entry = {"text": golden["greeting_text"].tolist(), "audio": golden["greeting_codes"].tolist()}
    (tmp_path / "greetings.jsonl").write_text(json.dumps(entry) + "\n")
    return tmp_path / "greetings.jsonl"


def test_context_equals_the_reference(prompt, file, golden):
    prompt.greetings = read_greetings(file, prompt)
    patches = prompt.system_prompt("s2s", prompt.opening("0", "s2s"))
    wanted = golden["s2s_prompt"][:, : 3 * patches.text.shape[1]]
    np.testing.assert_array_equal(flat(patches), wanted)


def test_engine_holds_the_same_context(prompt, file, golden):
    prompt.greetings = read_greetings(file, prompt)
    context = History(prompt, 1024, 32, SessionSettings()).context.next_chunk()
    np.testing.assert_array_equal(flat(context), golden["s2s_prompt"][:, : 3 * context.text.shape[1]])


def test_text_is_laid_out(prompt, tmp_path):
    (tmp_path / "g").write_text(json.dumps({"text": "what is", "audio": [1, 2, 3] * 9}))
    (speech,) = read_greetings(tmp_path / "g", prompt).speech.values()
    assert speech.text == "what is" and speech.tokens is None and speech.codes.shape == (9, 3)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: not JSON"),
        ("[]", "line 1: a greeting must be an object"),
        ('{"text": [5], "audio": [1, 2]}', '"audio" must be a list of codes'),
        ('{"text": [5], "audio": [1, 2, 1024]}', '"audio" must be a list of codes'),
        ('{"text": [5, 6], "audio": [1, 2, 3]}', "2 tokens for 1 frames"),
        ('{"text": [99999], "audio": [1, 2, 3, 1, 2, 3, 1, 2, 3]}', "the model has no token 99999"),
        ("", "contains no greeting"),
    ],
)
def test_invalid_files_are_refused(prompt, tmp_path, line, message):
    (tmp_path / "g").write_text(line)
    with pytest.raises(UserError, match=message):
        read_greetings(tmp_path / "g", prompt)


def test_released_layout_without_a_file_has_the_released_greetings(prompt, tmp_path, monkeypatch, file):
    monkeypatch.setattr("speechgpt2.lm.greetings.hub.ASSETS", tmp_path)
    (tmp_path / RELEASED).write_text(file.read_text())
    found = model_greetings(tmp_path / "absent", prompt, released=True)
    assert found.built_in and found.default == "0" and list(found.speech) == ["0"]
    assert not model_greetings(tmp_path / "absent", prompt, released=False).speech
    beside = model_greetings(file.parent, prompt, released=True)
    assert beside.speech and not beside.built_in


def test_released_greetings_are_not_used_with_other_tokens(prompt):
    assert not model_greetings(GOLDEN / "absent", prompt, released=True).speech  # the tokenizer is a tiny one


def test_package_holds_the_released_greetings():
    entries = read_entries(hub.ASSETS / RELEASED, 3, 1024, lambda entry: entry)
    assert len(entries) == 24 and all(3 * len(entry.text) == len(entry.codes) for entry in entries)
