"""Random JSON schemas, of which every kind of value has a bounded length."""

from __future__ import annotations

import random
from typing import Any

from speechgpt2.types import Tool

DEPTH = 3
NAMES = ("city", "days", "unit", "城市", 'a "quoted" name', "with space", "x", "snake_case", "käse", "id")
WORDS = ("celsius", "fahrenheit", "今天", "", 'say "hi"', "back\\slash", "línea", "tab\there")


def random_tool(number: int, generator: random.Random) -> Tool:
    """Return a tool whose arguments have a random schema."""
    schema = _object(generator, DEPTH)
    if generator.random() < 0.2:  # by reference, as pydantic writes nested models
        schema["$defs"] = {"Part": _object(generator, 1)}
        schema["properties"]["part"] = {"$ref": "#/$defs/Part"}
        schema["required"].append("part")
    return Tool(f"tool_{number}", "A tool.", schema)


def random_schema(generator: random.Random, depth: int = DEPTH) -> dict[str, Any]:
    """Return a schema of values that are nested `depth` times at most."""
    kinds = [_string, _integer, _number, _enum, _simple]
    if depth:
        kinds += [_nested_object, _array, _any_of]
    return generator.choice(kinds)(generator, depth)


def _object(generator: random.Random, depth: int) -> dict[str, Any]:
    names = generator.sample(NAMES, generator.randint(0, 3))
    properties = {name: random_schema(generator, depth - 1) for name in names}
    required = [name for name in names if generator.random() < 0.7]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _nested_object(generator: random.Random, depth: int) -> dict[str, Any]:
    return _object(generator, depth)


def _array(generator: random.Random, depth: int) -> dict[str, Any]:
    least = generator.randint(0, 1)
    items = random_schema(generator, depth - 1)
    return {"type": "array", "items": items, "minItems": least, "maxItems": least + generator.randint(0, 2)}


def _any_of(generator: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [random_schema(generator, depth - 1) for _ in range(2)]}


def _string(generator: random.Random, depth: int) -> dict[str, Any]:
    least = generator.randint(0, 2)
    return {"type": "string", "minLength": least, "maxLength": least + generator.randint(0, 8)}


def _integer(generator: random.Random, depth: int) -> dict[str, Any]:
    least = generator.randint(-1000, 1000)
    return {"type": "integer", "minimum": least, "maximum": least + generator.randint(0, 5000)}


def _number(generator: random.Random, depth: int) -> dict[str, Any]:
    return {"type": "number"}


def _enum(generator: random.Random, depth: int) -> dict[str, Any]:
    return {"enum": [*generator.sample(WORDS, generator.randint(1, 3)), generator.randint(0, 9), None]}


def _simple(generator: random.Random, depth: int) -> dict[str, Any]:
    return {"type": generator.choice(["boolean", "null"])}
