"""Configurations: strict reading, unions, round trips."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from speechgpt2 import config, hub
from speechgpt2.errors import UserError
from speechgpt2.nn.transformer import TransformerConfig
from tests import needs


@dataclass(frozen=True)
class Square:
    kind: Literal["square"] = "square"
    side: float = 1.0


@dataclass(frozen=True)
class Circle:
    kind: Literal["circle"] = "circle"
    radius: float = 1.0

    def __post_init__(self):
        if self.radius < 0:
            raise UserError("radius must not be negative")


@dataclass(frozen=True)
class Pen:
    width: int
    colours: tuple[str, ...] = ()


@dataclass(frozen=True)
class Drawing:
    pen: Pen
    shape: Square | Circle = field(default_factory=Square)
    title: str | None = None
    scale: float = 1.0
    closed: bool = False
    layers: dict[str, float] = field(default_factory=dict)


WHOLE = Drawing(
    Pen(3, ("red", "blue")), Circle(radius=2.5), title="a title", scale=1e-4, closed=True, layers={"ink": 1.0}
)


@pytest.mark.parametrize("ending", ["yaml", "json"])
@pytest.mark.parametrize("drawing", [WHOLE, Drawing(Pen(1))])
def test_round_trip(tmp_path, ending, drawing):
    path = tmp_path / f"drawing.{ending}"
    config.dump(drawing, path)
    assert config.load(Drawing, path) == drawing
    assert config.from_dict(Drawing, config.to_dict(drawing)) == drawing


def test_defaults_fill_missing_keys():
    assert config.from_dict(Drawing, {"pen": {"width": 1}}) == Drawing(Pen(1))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pen": {"width": 1}, "scael": 2.0}, "Drawing: unknown key 'scael'; did you mean 'scale'"),
        ({"pen": {"widht": 1}}, "Drawing.pen: unknown key 'widht'; did you mean 'width'"),
        ({}, "Drawing: missing key 'pen'"),
        ({"pen": {}}, "Drawing.pen: missing key 'width'"),
        ({"pen": 1}, "Drawing.pen: expected a mapping"),
        ({"pen": {"width": "thick"}}, "Drawing.pen.width: expected int, got 'thick'"),
        ({"pen": {"width": 1.5}}, "Drawing.pen.width: expected int, got 1.5"),
        ({"pen": {"width": True}}, "Drawing.pen.width: expected int, got True"),
        ({"pen": {"width": 1, "colours": "red"}}, "Drawing.pen.colours: expected a list"),
        ({"pen": {"width": 1, "colours": ["red", 2]}}, r"Drawing.pen.colours\[1\]: expected str, got 2"),
        ({"pen": {"width": 1}, "layers": ["ink"]}, "Drawing.layers: expected a mapping"),
        ({"pen": {"width": 1}, "layers": {1: 1.0}}, "Drawing.layers: expected a mapping"),
        ({"pen": {"width": 1}, "layers": {"ink": "much"}}, r"Drawing.layers\['ink'\]: expected float, got 'much'"),
        ({"pen": {"width": 1}, "layers": {"a\nb": "much"}}, r"Drawing.layers\['a\\nb'\]: expected float"),
        ({"pen": {"width": 1}, "a\nb": 1}, r"Drawing: unknown key 'a\\nb'"),
        ({"pen": {"width": 1}, "closed": 1}, "Drawing.closed: expected bool, got 1"),
        ({"pen": {"width": 1}, "title": 5}, "Drawing.title: expected str, got 5"),
        ({"pen": {"width": 1}, "scale": "big"}, "Drawing.scale: expected float, got 'big'"),
        ({"pen": {"width": 1}, "shape": {"side": 1.0}}, "Drawing.shape: needs a key 'kind', one of square, circle"),
        ({"pen": {"width": 1}, "shape": {"kind": "star"}}, "Drawing.shape: needs a key 'kind'"),
        ({"pen": {"width": 1}, "shape": {"kind": "circle", "side": 1.0}}, "Drawing.shape: unknown key 'side'"),
        (
            {"pen": {"width": 1}, "shape": {"kind": "circle", "radius": -1}},
            "Drawing.shape: radius must not be negative",
        ),
        ([], "Drawing: expected a mapping of keys, got list"),
        (None, "Drawing: expected a mapping of keys, got NoneType"),
    ],
)
def test_errors_name_the_wrong_key(values, message):
    with pytest.raises(UserError, match=message) as caught:
        config.from_dict(Drawing, values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "value"), [("1e-4", 1e-4), ("2", 2.0), (".5", 0.5), ("3E+2", 300.0)])
def test_yaml_numbers_become_floats(tmp_path, text, value):
    path = tmp_path / "drawing.yaml"
    path.write_text(f"pen: {{width: 1}}\nscale: {text}\n")
    assert config.load(Drawing, path).scale == value


@pytest.mark.parametrize("content", [b"pen: [1", b"\xff\xfe\x00", b"a: b: c", b"!!python/object:os.system {}"])
def test_invalid_yaml_is_refused(tmp_path, content):
    path = tmp_path / "drawing.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"drawing\.yaml: cannot be read as YAML") as caught:
        config.load(Drawing, path)
    assert "\n" not in str(caught.value)


def test_absent_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        config.load(Drawing, tmp_path / "absent.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        config.load(Drawing, tmp_path)


@needs.condition(hasattr(os, "mkfifo"), "the system has no named pipes")
@pytest.mark.parametrize("kind", ["pipe", "/dev/null", "open pipe"])
def test_special_files_are_refused_at_once(tmp_path, kind):
    read_end, write_end = os.pipe()
    try:
        path = {"pipe": tmp_path / "pipe.yaml", "/dev/null": "/dev/null", "open pipe": f"/dev/fd/{read_end}"}[kind]
        os.mkfifo(tmp_path / "pipe.yaml")  # nobody writes to it
        with pytest.raises(UserError, match="not a regular file") as caught:
            config.load(Drawing, path)
        assert "\n" not in str(caught.value)
        with pytest.raises(UserError, match="not a regular file"):
            hub.read_text(Path(path))
    finally:
        os.close(read_end)
        os.close(write_end)


def test_errors_name_the_file(tmp_path):
    path = tmp_path / "drawing.yaml"
    path.write_text("pen: {width: 1, color: red}\n")
    with pytest.raises(UserError, match=r"drawing\.yaml\.pen: unknown key 'color'; did you mean 'colours'"):
        config.load(Drawing, path)


def test_former_key_is_read_under_its_present_name():
    sizes = {"width": 8, "heads": 2, "layers": 1, "ffn": 16, "context": 4}
    assert config.from_dict(TransformerConfig, sizes | {"rope_base": 500.0}).rope_theta == 500.0
    assert "rope_base" not in config.to_dict(TransformerConfig(**sizes))
