"""Python functions as tools: the signature becomes a JSON schema, the docstring the description.

@tool(timeout=3)
def weather(city: str, unit: Literal["C", "F"] = "C") -> str:
    "Look up the weather in a city."

PythonTool.from_function(weather).tool             # types.Tool, as a conversation takes it
load_functions("tools.py")                         # the functions of a file
"""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
import typing
from collections.abc import Callable
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal

from speechgpt2.assistant.schema import from_json, json_schema, with_default
from speechgpt2.errors import UserError
from speechgpt2.types import Tool

OPTIONS = "_speechgpt2_tool"  # the attribute that `tool` sets
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}$")  # the names that the OpenAI API accepts
# Sections of a Google-style docstring: https://google.github.io/styleguide/pyguide.html#383-functions-and-methods
SECTION = re.compile(r"(Args|Arguments|Parameters|Returns?|Yields?|Raises|Examples?|Notes?|Attributes):\s*$")
ARGUMENT = re.compile(r"\*{0,2}(\w+)\s*(?:\([^)]*\))?:\s*(.*)$")
OnInterrupt = Literal["cancel", "keep"]


@dataclass(frozen=True)
class ToolOptions:
    """Options of the decorator `tool`.

    Attributes:
        name: Replaces the function's name; None keeps it.
        timeout: Seconds that a call may take; None for the toolbox's own.
        background: See `PythonTool`, and so `on_interrupt`.
    """

    name: str | None = None
    timeout: float | None = None
    background: bool = False
    on_interrupt: OnInterrupt = "cancel"


@dataclass(frozen=True)
class PythonTool:
    """A function with its description.

    Attributes:
        tool: The description for the model.
        function: The function, which is called with keyword arguments.
        hints: The types of its arguments; an argument without a hint stays a JSON value.
        timeout: Seconds that a call may take; None for the toolbox's own.
        background: Whether a live talk goes on during a call; the result is spoken when it comes.
        on_interrupt: What becomes of a call when the user interrupts a live talk.
    """

    tool: Tool
    function: Callable[..., Any]
    hints: dict[str, Any]
    timeout: float | None = None
    background: bool = False
    on_interrupt: OnInterrupt = "cancel"

    @classmethod
    def from_function(cls, function: Callable[..., Any]) -> PythonTool:
        """Describe a function.

        Raises:
            UserError: It has no docstring, or an argument has no type, a type that JSON cannot express, or no name.
        """
        options = getattr(function, OPTIONS, ToolOptions())
        name = str(options.name or getattr(function, "__name__", type(function).__name__))
        if not NAME.match(name):
            raise UserError(f"{name}: a tool's name must consist of ASCII letters, digits, _ and -; use @tool(name=…)")
        description, arguments = parse_docstring(inspect.getdoc(function) or "")
        if not description:
            raise UserError(f"{name}: the function needs a docstring that tells the model what it does")
        hints, parameters = _parameters(function, name, arguments)
        described = Tool(name, description, parameters)
        return cls(described, function, hints, options.timeout, options.background, options.on_interrupt)

    def convert(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Convert valid JSON arguments to the function's types, such as enums and dataclasses."""
        return {
            key: from_json(self.hints[key], value) if key in self.hints else value for key, value in arguments.items()
        }


def tool(
    function: Any = None,
    *,
    name: str | None = None,
    timeout: float | None = None,
    background: bool = False,
    on_interrupt: OnInterrupt = "cancel",
) -> Any:
    """Mark a function as a tool, with or without options.

    Args:
        function: The function, if the decorator has no parentheses.
        name: The tool's name; None for that of the function.
        timeout: Seconds that a call may take; None for the toolbox's own.
        background: Whether a live talk goes on during a call; the result is spoken when it comes.
        on_interrupt: What becomes of a call when the user interrupts a live talk.
    """

    def mark(function: Any) -> Any:
        setattr(function, OPTIONS, ToolOptions(name, timeout, background, on_interrupt))
        return function

    return mark if function is None else mark(function)


def load_functions(path: str | Path) -> list[Callable[..., Any]]:
    """Import a Python file and return its tools: the functions marked by `tool`, else those that `__all__` lists.

    Raises:
        UserError: The file does not exist, cannot be imported or has no tools.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    spec = importlib.util.spec_from_file_location(f"speechgpt2_tools_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path}: not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up the module of their type hints
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[spec.name]
        raise UserError(f"{path}: cannot be imported ({type(error).__name__}: {error})") from None
    marked = [value for value in vars(module).values() if callable(value) and hasattr(value, OPTIONS)]
    listed = [getattr(module, name, None) for name in getattr(module, "__all__", ())]
    functions = marked or [value for value in listed if inspect.isroutine(value)]
    if not functions:
        raise UserError(f"{path}: has no tools; mark functions with @tool or list them in __all__")
    return functions


def parse_docstring(text: str) -> tuple[str, dict[str, str]]:
    """Read a Google-style docstring.

    Args:
        text: The docstring without its indentation (`inspect.getdoc`).

    Returns:
        The description before the first section, on one line a paragraph, and the descriptions of the arguments.
    """
    lines = text.splitlines()
    sections = [number for number, line in enumerate(lines) if SECTION.match(line)]
    description = "\n".join(lines[: sections[0]] if sections else lines).strip()
    paragraphs = [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", description)]
    arguments: dict[str, str] = {}
    for start, end in zip(sections, [*sections[1:], len(lines)]):
        if lines[start].startswith(("Arg", "Param")):
            arguments.update(_argument_texts(inspect.cleandoc("\n".join(["", *lines[start + 1 : end]])).splitlines()))
    return "\n".join(paragraphs), arguments


def _argument_texts(lines: list[str]) -> dict[str, str]:
    texts: dict[str, str] = {}
    name = None
    for line in lines:
        found = ARGUMENT.match(line)
        if found and not line[0].isspace():
            name, texts[found[1]] = found[1], found[2].strip()
        elif name is not None:
            texts[name] = f"{texts[name]} {line.strip()}".strip()
    return texts


def _parameters(
    function: Callable[..., Any], name: str, texts: dict[str, str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The type hints of a function's arguments, and their JSON schema."""
    try:
        target = function if inspect.isroutine(function) else type(function).__call__
        hints = typing.get_type_hints(target, include_extras=True)
        signature = inspect.signature(function)
    except (NameError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{name}: the annotations cannot be read ({error})") from None
    properties, required = {}, []
    for argument in signature.parameters.values():
        where = f"{name}({argument.name})"
        if argument.kind in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD, argument.POSITIONAL_ONLY):
            raise UserError(f"{where}: *args, **kwargs and positional-only arguments cannot be given by name")
        if argument.name not in hints:
            raise UserError(f"{where}: the argument needs a type annotation, such as {argument.name}: str")
        default = MISSING if argument.default is argument.empty else argument.default
        schema = with_default(json_schema(hints[argument.name], where), default)
        text = {"description": texts[argument.name]} if texts.get(argument.name) else {}
        properties[argument.name] = {**schema, **text}
        required += [argument.name] if default is MISSING else []
    known = {key: hint for key, hint in hints.items() if key in properties}
    return known, {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
