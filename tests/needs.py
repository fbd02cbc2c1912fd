"""What a test needs besides the package: programs, libraries, extras, voices, models. Without it the test is skipped.

    pytestmark = needs.tool("chromium")                # a mark, for a module, a test or a parameter
    @needs.voice(ASSISTANT_VOICES["en"])               # the engine that speaks it, and what that engine needs
    aiohttp = needs.module("aiohttp", "crawl")         # at import time: the module, or the whole file is skipped
    @needs.condition(hasattr(signal, "SIGKILL"), "the system has no SIGKILL")
    @needs.model("SG2_WHISPER")                        # an environment variable with the path of a model
    @needs.device("cuda")                              # a device of PyTorch; `conftest.device` runs a test on each

The skip says what is missing. `SG2_TESTS_WITHOUT` names installed tools that tests must not use ("all" for every one):
the suite then runs as on a bare machine. `pytest -m needs_tool` runs the tests that need a tool, and no others.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

WITHOUT = "SG2_TESTS_WITHOUT"
MARKS = {
    "needs_tool": "needs_tool(*names): needs programs or libraries that pip does not install",
    "needs_extra": "needs_extra(*modules, extra): needs packages of an extra",
    "needs_voice": "needs_voice(*voices): needs what the engines of these voices need",
    "needs_model": "needs_model(variable): needs a model whose path the environment variable gives",
    "needs_cpu": "needs_cpu: compares a device with the CPU, and here the CPU with itself",
    "needs_cuda": "needs_cuda: needs a device of PyTorch's kind cuda",
    "needs_mps": "needs_mps: needs a device of PyTorch's kind mps",
}
DEVICES = ("cpu", "cuda", *(["mps"] if sys.platform == "darwin" else []))  # elsewhere there is no MPS to miss


def _programs(*names: str) -> Callable[[], bool]:
    return lambda: all(shutil.which(name) for name in names)


def _library(name: str) -> Callable[[], bool]:
    def present() -> bool:
        try:
            ctypes.CDLL(name)
        except OSError:
            return False
        return True

    return present


# name: whether it is there. The names are those of Debian's packages.
TOOLS: dict[str, Callable[[], bool]] = {
    "chromium": lambda: bool(shutil.which("chromium") or shutil.which("google-chrome")),
    "codec2": _programs("c2enc", "c2dec"),
    "espeak-ng": _library("libespeak-ng.so.1"),
    "festival": _programs("festival"),
    "ffmpeg": _programs("ffmpeg"),
    "flite": _library("libflite.so.1"),
}
# The package that an engine's voices need: a tool, or the modules of an extra (by language).
VOICES: dict[str, Callable[[str], pytest.MarkDecorator]] = {
    "espeak": lambda lang: extra("synthesis", "espeakng_loader", *(["pypinyin"] if lang == "zh" else [])),
    "festival": lambda lang: tool("festival"),
    "flite": lambda lang: tool("flite"),
    "kokoro": lambda lang: model("SG2_KOKORO"),
}


def tool(*names: str) -> pytest.MarkDecorator:
    """Mark a test that needs `names` of `TOOLS`."""
    unknown = set(names) - set(TOOLS)
    assert not unknown, f"say in TOOLS how to find {unknown}"
    return pytest.mark.needs_tool(*names)


def extra(extra: str, *modules: str) -> pytest.MarkDecorator:
    """Mark a test that needs Python modules which the extra `extra` installs."""
    return pytest.mark.needs_extra(*modules, extra=extra)


def voice(*voices: Any) -> pytest.MarkDecorator:
    """Mark a test that speaks with these `Voice`s; it needs what their engines need."""
    return pytest.mark.needs_voice(*voices)


def model(variable: str) -> pytest.MarkDecorator:
    """Mark a test that needs a model; the environment variable `variable` holds its path."""
    return pytest.mark.needs_model(variable)


def device(kind: str) -> pytest.MarkDecorator:
    """Mark a test that needs a device of a kind (`torch.device.type`): `pytest -m needs_cuda` runs those of CUDA."""
    return getattr(pytest.mark, f"needs_{kind}")


def condition(met: bool, reason: str) -> pytest.MarkDecorator:
    """Mark a test that needs a property of the machine or of an installed package."""
    return pytest.mark.skipif(not met, reason=reason)


def module(name: str, extra: str) -> Any:
    """Import a module of the extra `extra`; without it skip the calling test, or the file that is being imported."""
    if not _importable(name):
        pytest.skip(_missing_extra(name, extra), allow_module_level=True)
    return importlib.import_module(name)


def present(name: str) -> bool:
    """Whether a tool is there and may be used."""
    hidden = os.environ.get(WITHOUT, "").replace(" ", "").split(",")
    return name not in hidden and "all" not in hidden and _found(name)


@cache
def _found(name: str) -> bool:
    return TOOLS[name]()


@cache
def _importable(name: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(name)
    except ImportError:
        return False
    return True


@cache
def _has_device(kind: str) -> bool:
    import torch  # here, because tests of the data pipeline do without it

    return {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}.get(kind, lambda: True)()


def _missing_extra(name: str, extra: str) -> str:
    return f"needs the Python package {name} (pip install 'speechgpt2[{extra}]')"


def expand(item: pytest.Item) -> None:
    """Mark a test that needs voices with what their engines need, so that `-m needs_tool` selects it."""
    for mark in list(item.iter_markers("needs_voice")):
        for speaker in mark.args:
            item.add_marker(VOICES[speaker.engine](speaker.lang))


def missing(item: pytest.Item) -> str:
    """Say what a test needs and this machine lacks; "" if nothing is missing."""
    for mark in item.iter_markers():
        kind = mark.name.removeprefix("needs_")
        if kind in DEVICES and not _has_device(kind):
            return f"needs a device of kind {kind}, which PyTorch does not find on this machine"
        for name in mark.args:
            if mark.name == "needs_tool" and not present(name):
                return f"needs {name} (Debian: apt install {name})"
            if mark.name == "needs_extra" and not _importable(name):
                return _missing_extra(name, mark.kwargs["extra"])
            if mark.name == "needs_model" and not Path(os.environ.get(name) or "/nonexistent").exists():
                return f"needs a model: set {name} to its path"
    return ""
