"""Who may know whom: the imports of every module, against the plan in docs/architecture.md."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "speechgpt2"
MODULES = sorted(PACKAGE.rglob("*.py"))

WORDS = {"types", "errors", "config"}  # what everything may speak
FLOOR = WORDS | {"streaming", "audio", "hub", "nn"}  # what models stand on

# room: the rooms it may import when it is loaded, besides itself. `chat` and the like are single files.
MAY_IMPORT = {
    "__init__": set(),
    "types": set(),
    "errors": set(),
    "config": {"errors"},
    "bell": set(),
    "streaming": {"errors"},
    "hub": {"errors"},
    "extras": {"errors"},
    "asr": WORDS | {"audio", "hub", "extras"},
    "audio": {"errors", "types", "hub"},
    "vad": {"errors", "hub"},
    "nn": WORDS | {"streaming"},
    "training": WORDS | {"hub"},
    "codec": FLOOR | {"training"},
    "lm": FLOOR | {"training"},
    "compat": FLOOR | {"codec", "lm"},
    "chat": FLOOR | {"codec", "lm"},
    "engine": FLOOR | {"bell", "codec", "lm", "duplex"},  # of it only its protocol, see below
    "duplex": WORDS | {"audio", "bell", "vad"},
    "server": WORDS | {"audio", "hub", "engine", "duplex"},
    "scale": WORDS | {"server"},
    "client": WORDS | {"audio"},  # of the wire: knows no server
    "demo": WORDS | {"audio", "client"},
    "dsp": WORDS | {"audio", "data", "tts", "vad"},
    "tts": FLOOR | {"dsp", "data"},
    "curriculum": WORDS | {"tts"},
    "data": FLOOR | {"vad", "dsp", "tts", "curriculum", "corpus"},
    "corpus": FLOOR | {"codec", "lm", "training", "data", "dsp", "tts", "curriculum"},
    "eval": FLOOR | {"asr", "extras", "codec", "lm", "engine", "chat", "curriculum", "corpus", "tts"},
    "bench": FLOOR | {"codec", "lm", "engine", "chat", "data", "eval", "client", "tts", "curriculum"},
    "cli": None,  # all of them; the two tests below keep it lazy, and unknown to the others
}

# What a function may import besides, at the moment it needs it.
MAY_IMPORT_LATE = {
    "__init__": {"types", "codec", "lm", "chat"},  # the public names, on first use
    "codec": {"compat"},  # from_pretrained recognises a released checkpoint
    "lm": {"compat"},
    "data": {"chat"},  # the voice of synthetic speech may be one of our models
    "tts": {"chat", "lm"},
    "asr": {"chat"},  # one of our models may be a recogniser
}

# Where a corpus becomes a trainer's batches: the only part of `data` that knows torch and a trainer's types.
BATCHES = {"speechgpt2.corpus.codec_dataset", "speechgpt2.corpus.lm_dataset", "speechgpt2.corpus.conversation_dataset"}


class Import:
    """One import of a module of ours or another's: its dotted name, and whether it happens when the file is loaded."""

    def __init__(self, name: str, late: bool):
        self.name, self.late = name, late
        parts = name.split(".")
        self.room = (parts[1] if len(parts) > 1 else "__init__") if parts[0] == "speechgpt2" else None


def name_of(path: Path) -> str:
    parts = ("speechgpt2", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports_of(path: Path) -> Iterator[Import]:
    return walk(ast.parse(path.read_text(encoding="utf-8")), path, late=False)


def walk(node: ast.AST, path: Path, late: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, late) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from (Import(name, late) for name in targets(child, path))
        elif isinstance(child, ast.If) and getattr(child.test, "id", "") == "TYPE_CHECKING":
            continue  # never happens
        else:
            yield from walk(child, path, late or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)))


def targets(node: ast.ImportFrom, path: Path) -> list[str]:
    """The modules that `from … import …` means: `from speechgpt2 import hub` means `speechgpt2.hub`."""
    assert not node.level, f"{path}: relative import"
    module = node.module or ""
    inside = PACKAGE.parent / module.replace(".", "/")
    if module.startswith("speechgpt2") and inside.is_dir():
        return [f"{module}.{alias.name}" if is_module(inside / alias.name) else module for alias in node.names]
    return [module]


def is_module(path: Path) -> bool:
    return path.is_dir() or path.with_suffix(".py").is_file()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_knows_only_what_it_may(path):
    room = room_of(path)
    assert room in MAY_IMPORT, f"say in MAY_IMPORT whom the new room {room} may know"
    if MAY_IMPORT[room] is None:
        return
    early = MAY_IMPORT[room] | {room}
    late = early | MAY_IMPORT_LATE.get(room, set())
    for found in imports_of(path):
        if found.room is not None:
            allowed = late if found.late else early
            assert found.room in allowed, f"{name_of(path)} may not import {found.name}"


@pytest.mark.parametrize("path", [p for p in MODULES if room_of(p) == "engine"], ids=name_of)
def test_an_engine_knows_of_the_dialogue_only_what_it_must_offer(path):
    for found in imports_of(path):
        assert found.room != "dialogue" or found.name == "speechgpt2.duplex.protocol", found.name


def test_the_scheduler_knows_no_torch():
    found = {found.name.split(".")[0] for found in imports_of(PACKAGE / "engine" / "scheduler.py")}
    assert "dataclasses" in found and "torch" not in found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_model_never_knows_its_trainer(path):
    if path.stem in ("train", "losses", "discriminators") or room_of(path) in ("training", "cli"):
        return
    if name_of(path) in BATCHES:
        return
    for found in imports_of(path):
        trainer = found.room == "training" or found.name.endswith((".train", ".losses", ".discriminators"))
        assert not trainer, f"{name_of(path)} imports {found.name}"


WITHOUT_TORCH = [
    path
    for path in MODULES
    if room_of(path) in ("data", "corpus", "curriculum", "dsp", "tts") and name_of(path) not in BATCHES
]


@pytest.mark.parametrize("path", WITHOUT_TORCH, ids=name_of)
def test_data_is_made_without_torch(path):
    loaded = [found.name for found in imports_of(path) if not found.late]
    assert not any(name.split(".")[0] == "torch" for name in loaded)


@pytest.mark.parametrize("path", [p for p in MODULES if room_of(p) == "cli"], ids=name_of)
def test_the_command_line_imports_nothing_heavy_early(path):
    light = {"speechgpt2.errors", "speechgpt2.cli"}
    for found in imports_of(path):
        if not found.late and found.room is not None:
            assert any(found.name == name or found.name.startswith(name + ".") for name in light), found.name
        assert found.late or found.name.split(".")[0] not in {"torch", "numpy", "soundfile", "tokenizers"}, found.name


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_says_what_it_is(path):
    assert (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").strip()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_file_can_be_read_in_one_sitting(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 450
