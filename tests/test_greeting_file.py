"""Files of greetings: what is read, what is refused, what is written."""

import json

import numpy as np
import pytest

from speechgpt2.errors import UserError
from speechgpt2.greeting_file import Entry, append_entry, read_entries, write_entries

GOOD = {"text": "Hello!", "audio": [1, 2, 3] * 9}


def write(path, *entries):
    path.write_text("".join((entry if isinstance(entry, str) else json.dumps(entry)) + "\n" for entry in entries))
    return path


def read(path):
    return read_entries(path, 3, 1024, lambda entry: entry)


def test_entries_are_read_in_order(tmp_path):
    named = {**GOOD, "name": "anna-2", "default": True}
    path = write(tmp_path / "g.jsonl", {"text": [7, 8], "audio": [1, 2, 3, 4, 5, 6]}, "", named)
    first, second = read(path)
    assert first.text == [7, 8] and first.codes.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert (first.name, first.default) == (None, False)
    assert (second.text, second.name, second.default) == ("Hello!", "anna-2", True) and second.codes.shape == (9, 3)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{", "not JSON"),
        ([1], 'an object with "text" and "audio"'),
        ({"text": "x"}, 'an object with "text" and "audio"'),
        ({"text": "x", "audio": [1, 2]}, "3 for each frame"),
        ({"text": "x", "audio": [1, 2, 1024]}, "in 0…1023"),
        ({"text": "x", "audio": [1, 2, -1]}, "in 0…1023"),
        ({"text": ["x"], "audio": [1, 2, 3]}, "token ids, or a string"),
        ({**GOOD, "name": ""}, "a voice's name"),
        ({**GOOD, "name": "12"}, "a voice's name"),
        ({**GOOD, "name": "default"}, "a voice's name"),
        ({**GOOD, "name": "a b"}, "a voice's name"),
        ({**GOOD, "name": 3}, "a voice's name"),
        ({**GOOD, "name": "first"}, "another greeting is named first"),
        ({**GOOD, "default": True}, "another greeting is default"),
        ({**GOOD, "default": "yes"}, '"default" must be true or false'),
    ],
)
def test_invalid_line_is_named(tmp_path, entry, message):
    first = {**GOOD, "name": "first", "default": True}
    with pytest.raises(UserError, match=r"g\.jsonl, line 2: ") as caught:
        read(write(tmp_path / "g.jsonl", first, entry))
    assert message in str(caught.value)


def test_empty_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="contains no greeting"):
        read(write(tmp_path / "g.jsonl"))


def test_written_entries_are_read_back(tmp_path):
    codes = np.arange(9).reshape(3, 3)
    entries = [Entry([5], codes), Entry("嘿！", codes + 1, "anna", True)]
    write_entries(tmp_path / "g.jsonl", entries)
    append_entry(tmp_path / "g.jsonl", Entry([6], codes, "ben"))
    found = read(tmp_path / "g.jsonl")
    assert [entry[::2] for entry in found] == [([5], None), ("嘿！", "anna"), ([6], "ben")]
    assert [entry.default for entry in found] == [False, True, False]
    assert all(np.array_equal(entry.codes, codes + (n == 1)) for n, entry in enumerate(found))


def test_append_keeps_what_is_there(tmp_path):
    path = tmp_path / "g.jsonl"
    path.write_text(json.dumps(GOOD))  # without a newline at its end
    append_entry(path, Entry([6], np.zeros((3, 3), np.int64)))
    assert path.read_text().splitlines() == [json.dumps(GOOD), '{"text": [6], "audio": [0, 0, 0, 0, 0, 0, 0, 0, 0]}']
    with pytest.raises(UserError, match="cannot write"):
        append_entry(tmp_path / "absent" / "g.jsonl", Entry([6], np.zeros((3, 3), np.int64)))
