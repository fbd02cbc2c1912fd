"""Python functions as tools: types to JSON schemas, docstrings to descriptions, JSON arguments to Python values."""

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, TypedDict

import pytest

from speechgpt2.assistant.functions import PythonTool, load_functions, parse_docstring, tool
from speechgpt2.assistant.schema import from_json, json_schema
from speechgpt2.errors import UserError


class Unit(Enum):
    CELSIUS = "C"
    FAHRENHEIT = "F"


@dataclass
class Place:
    city: str
    country: str = "France"
    tags: list[str] = field(default_factory=list)


class Window(TypedDict):
    first: int
    last: int


@dataclass
class Tree:
    children: "list[Tree]"


def weather(city: str, unit: Unit = Unit.CELSIUS, days: Optional[int] = None) -> str:  # noqa: UP045
    """Look up the weather
    in a city.

    It knows the next week.

    Args:
        city: Name of the city,
            as on a map.
        unit (Unit): Unit of the temperature: C or F.

    Returns:
        One sentence.
    """
    return f"{city} {unit.name} {days}"


def test_function_becomes_a_tool():
    described = PythonTool.from_function(weather).tool
    assert described.name == "weather"
    assert described.description == "Look up the weather in a city.\nIt knows the next week."
    assert described.parameters == {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Name of the city, as on a map."},
            "unit": {
                "type": "string",
                "enum": ["C", "F"],
                "default": "C",
                "description": "Unit of the temperature: C or F.",
            },
            "days": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None},
        },
        "required": ["city"],
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    "hint, schema",
    [
        (bool, {"type": "boolean"}),
        (float, {"type": "number"}),
        (Any, {}),
        (Literal["a", "b"], {"type": "string", "enum": ["a", "b"]}),
        (Literal[1, "b"], {"type": ["integer", "string"], "enum": [1, "b"]}),
        (int | str, {"anyOf": [{"type": "integer"}, {"type": "string"}]}),
        (list, {"type": "array"}),
        (list[list[int]], {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}}),
        (dict[str, float], {"type": "object", "additionalProperties": {"type": "number"}}),
        (Annotated[int, "a count"], {"type": "integer", "description": "a count"}),
        (
            Window,
            {
                "type": "object",
                "properties": {"first": {"type": "integer"}, "last": {"type": "integer"}},
                "required": ["first", "last"],
                "additionalProperties": False,
            },
        ),
    ],
    ids=str,
)
def test_types_become_schemas(hint, schema):
    assert json_schema(hint, "x") == schema


def test_dataclass_becomes_an_object():
    schema = json_schema(Place, "x")
    assert schema["required"] == ["city"] and schema["properties"]["country"] == {"type": "string", "default": "France"}


@pytest.mark.parametrize(
    "hint, value, expected",
    [
        (Unit, "F", Unit.FAHRENHEIT),
        (int, 3.0, 3),
        (Place, {"city": "Lyon"}, Place("Lyon")),
        (list[Place], [{"city": "Lyon", "tags": ["a"]}], [Place("Lyon", tags=["a"])]),
        (dict[str, Unit], {"x": "C"}, {"x": Unit.CELSIUS}),
        (Place | None, None, None),
        (Place | None, {"city": "Lyon"}, Place("Lyon")),
        (int | str, "3", "3"),
        (Window, {"first": 1, "last": 2}, {"first": 1, "last": 2}),
    ],
    ids=str,
)
def test_json_values_become_python_values(hint, value, expected):
    converted = from_json(hint, value)
    assert converted == expected and type(converted) is type(expected)


@pytest.mark.parametrize(
    "hint", [set[int], Path, dict[int, str], Place | Window, Tree, Literal[b"x"], complex], ids=str
)
def test_types_without_a_schema_are_refused(hint):
    with pytest.raises(UserError, match=r"f\(x\)"):
        json_schema(hint, "f(x)")


def without_annotation(city):
    """Look it up."""


def without_docstring(city: str): ...


def with_any_number(*cities: str):
    """Look them up."""


def with_unknown_type(city: "Town"):  # noqa: F821
    """Look it up."""


@pytest.mark.parametrize(
    "function, message",
    [
        (without_annotation, r"without_annotation\(city\): the argument needs a type annotation"),
        (without_docstring, "needs a docstring"),
        (with_any_number, "cannot be given by name"),
        (with_unknown_type, "annotations cannot be read"),
        (lambda: None, "a tool's name must"),
    ],
)
def test_functions_that_are_no_tools(function, message):
    with pytest.raises(UserError, match=message) as error:
        PythonTool.from_function(function)
    assert "\n" not in str(error.value)


def test_decorator_sets_name_and_timeout():
    @tool(name="look_up", timeout=2)
    def private(word: str) -> str:
        """Look up a word."""
        return word

    described = PythonTool.from_function(private)
    assert (described.tool.name, described.timeout, private("x")) == ("look_up", 2, "x")


def test_docstring_with_code_and_colons():
    description, arguments = parse_docstring(
        "Do it.\n\nExample:\n    x: 1\n\nArgs:\n    a: One: two.\n    b:\n      Three."
    )
    assert description == "Do it." and arguments == {"a": "One: two.", "b": "Three."}


def test_functions_of_a_file(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(
        '__all__ = ["one", "LIMIT"]\nLIMIT = 3\ndef one() -> str:\n    "One."\ndef two() -> str:\n    "Two."\n'
    )
    assert [function.__name__ for function in load_functions(path)] == ["one"]
    path.write_text("from speechgpt2.assistant.functions import tool\n@tool\ndef two() -> str:\n    'Two.'\n")
    assert [function.__name__ for function in load_functions(path)] == ["two"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("import nonexistent_module", "cannot be imported .ModuleNotFoundError"),
        ("def f(:", "cannot be imported .SyntaxError"),
        ("raise SystemExit(3)", "cannot be imported .SystemExit"),
        ("x = 1", "has no tools"),
        ("__all__ = ['gone']", "has no tools"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, text, message):
    path = tmp_path / "own.py"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_functions(path)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_functions(tmp_path / "own.py")
