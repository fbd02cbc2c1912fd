"""Personas: the gallery, files of one's own, and what commands and the server make of them."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from speechgpt2 import persona as personas
from speechgpt2.cli import app
from speechgpt2.errors import UserError
from speechgpt2.persona import gallery, load_persona


def run(*arguments):
    return CliRunner().invoke(app, list(arguments))


def test_gallery_has_both_languages_and_is_complete():
    found = gallery().values()
    assert len(found) >= 8 and {p.language for p in found} == {"en", "zh"}
    for one in found:
        assert one.description and one.greeting and one.style and one.style in one.prompt
        chinese = any("\u4e00" <= letter <= "\u9fff" for letter in one.instructions)
        assert chinese == (one.language == "zh")
    assert len({p.name for p in found}) == len(found)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: A\nlanguage: en\n", "missing key 'instructions'"),
        ("name: A\nlanguage: fr\ninstructions: Hi.", "expected one of en, zh"),
        ("name: A\nlanguage: en\ninstructions: ' '", "must not be empty"),
        ("name: A\nlanguage: en\ninstructions: Hi.\nvoices: x", "did you mean 'voice'"),
        ("name: A\nlanguage: en\ninstructions: Hi.\ntools: {mpc: []}", "did you mean 'mcp'"),
        (f"name: A\nlanguage: en\ninstructions: {'x' * 3000}", "at most 2000 fit"),
        (f"name: A\nlanguage: en\ninstructions: Hi.\ngreeting: {'x' * 300}", "at most 200 fit"),
        ("- 1", "expected a mapping"),
        ("name: [", "cannot be read as YAML"),
    ],
)
def test_wrong_file_is_one_clear_line(tmp_path, text, message):
    file = tmp_path / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message) as error:
        load_persona(str(file))
    assert "mine.yaml" in str(error.value) and "\n" not in str(error.value)


def test_unknown_name_lists_the_gallery():
    with pytest.raises(UserError, match=r"no persona 'nobody'.*pirate"):
        load_persona("nobody")
    with pytest.raises(UserError, match="no such file"):
        load_persona("missing.yaml")


def test_list_and_new(tmp_path):
    listed = run("persona", "list")
    assert listed.exit_code == 0 and "pirate\ten\tCaptain Redbeard" in listed.stdout
    file = tmp_path / "mine.yaml"
    assert run("persona", "new", str(file), "--like", "shiren").exit_code == 0
    mine, model = load_persona(str(file)), load_persona("shiren")
    assert mine == model and "# en or zh" in file.read_text(encoding="utf-8")
    assert run("persona", "new", str(file)).exit_code == 2  # never over a file
    assert run("persona", "new", str(tmp_path / "mine.txt")).exit_code == 2


def test_chat_begins_with_the_greeting(tmp_path):
    out = tmp_path / "answer.wav"
    found = run("persona", "try", "pirate", "-t", "What is three plus five?", "-o", str(out))
    assert found.exit_code == 0, found.output
    assert found.stdout.startswith("sg2: Ahoy, matey!") and "you: What is three plus five?" in found.stdout
    from speechgpt2 import audio

    assert len(audio.load(out)) > 24_000
    assert len(load_persona("pirate").greeting) <= personas.MAX_GREETING
