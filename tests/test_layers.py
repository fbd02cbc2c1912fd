"""The layers of the project: which package, sub-package and module may import which (docs/architecture.md).

A *unit* is what a layer is made of. A package without sub-packages is one unit. In a package with sub-packages, as in
`speechgpt2` itself, each sub-package and each module beside them is a unit.
"""

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "speechgpt2"
MODULES = sorted(PACKAGE.rglob("*.py"))

BASE = {"types", "errors", "config", "languages"}  # every package may import these
FOUNDATION = BASE | {"streaming", "audio", "hub", "nn"}  # models stand on these

# package: the packages that it may import when it is loaded, besides itself. `chat` and the like are single modules.
MAY_IMPORT = {
    "__init__": set(),
    "types": set(),
    "languages": set(),
    "errors": set(),
    "config": {"errors", "hub"},
    "notifier": set(),
    "processes": set(),
    "streaming": {"errors"},
    "hub": {"errors"},
    "extras": {"errors"},
    "download": {"errors", "hub"},
    "assistant": BASE | {"extras", "fixed_words"},  # knows conversations by their types only
    "asr": BASE | {"audio", "hub", "extras"},
    "dnsmos": BASE | {"extras"},
    "media": {"errors", "extras"},
    "audio": {"errors", "types", "hub", "media"},
    "persona": BASE,
    "style": BASE,
    "fixed_words": {"languages"},
    "style_requests": BASE | {"style"},
    "greeting_file": {"errors", "hub"},
    "long_form": {"types", "languages", "audio", "vad"},  # what chat and server share: sentences, windows of speech
    "word_times": {"errors", "extras", "languages", "long_form"},  # words of a transcript in its audio
    "vad": {"errors", "hub"},
    "nn": BASE | {"streaming", "hub", "download"},  # the cache folder
    "styletts": BASE | {"nn", "extras"},  # Kokoro's network
    "training": BASE | {"hub"},
    "codec": FOUNDATION | {"training", "extras"},
    "lm": FOUNDATION | {"training", "extras", "greeting_file", "style", "style_requests", "fixed_words"},
    "loading": FOUNDATION | {"codec", "lm"},
    "sessions": BASE | {"audio", "hub"},  # arrays in, files out
    "conversation": FOUNDATION
    | {"codec", "lm", "dsp", "sessions", "style", "style_requests"},  # chat and engine share it
    "saved_chat": BASE | {"lm", "conversation", "sessions", "style"},
    "chat_conversation": FOUNDATION | {"lm", "conversation", "sessions", "saved_chat", "style"},
    "chat": FOUNDATION
    | {"codec", "lm", "loading", "conversation", "long_form", "sessions", "saved_chat", "chat_conversation", "style"},
    "engine": FOUNDATION
    | {"notifier", "codec", "lm", "loading", "conversation", "dsp", "sessions", "style", "style_requests"}
    | {"duplex"},  # only the protocol
    "duplex": BASE | {"audio", "notifier", "vad", "sessions", "style"},
    "server": BASE
    | {"audio", "hub", "engine", "duplex", "extras", "long_form", "word_times", "assistant", "persona", "sessions"}
    | {"style", "style_requests", "fixed_words"},
    "scale": BASE | {"server"},
    "client": BASE | {"audio"},  # knows the wire protocol, not the server
    "demo": BASE | {"audio", "client", "style"},
    "dsp": BASE | {"audio", "extras", "vad", "style"},  # arrays in, arrays out
    "tts": FOUNDATION | {"extras", "download", "dsp", "processes"},
    "curriculum": BASE,  # texts only
    "corpus": FOUNDATION | {"extras", "codec", "lm", "training", "processes", "dsp", "tts", "curriculum"},
    "data": FOUNDATION | {"extras", "asr", "dnsmos", "vad", "processes", "dsp", "tts", "curriculum", "corpus"},
    "eval": FOUNDATION | {"asr", "dnsmos", "extras", "codec", "lm", "engine", "chat", "curriculum", "corpus", "tts"},
    "bench": FOUNDATION
    | {"codec", "lm", "engine", "chat", "processes", "data", "eval", "client", "tts", "curriculum", "corpus"}
    | {"assistant", "asr", "dsp", "style", "loading", "duplex"},
    "__main__": {"cli"},
    "cli": None,  # all of them; the tests below keep it lazy, and unknown to the others
}

# What a function may import besides, when it runs.
MAY_IMPORT_LATE = {
    "word_times": {"lm", "tts"},  # the aligner
    "__init__": {"types", "codec", "lm", "chat"},  # the public names, on first use
    "data": {"chat"},  # a recogniser may be a model of this project
    "asr": {"chat"},  # a model of this project may be a recogniser
    "tts": {"chat", "lm", "styletts"},  # a voice may be a model of this project, or Kokoro's
}

# unit of a package with sub-packages: the units of the same package that it may import.
RECORDS = {"data.record", "data.decoding"}
UNITS_MAY_IMPORT = {
    "tts.utterance": set(),
    "tts.variants": set(),
    "tts.voice_prompts": set(),
    "tts.pinyin": {"tts.utterance"},
    "tts.espeak": {"tts.utterance", "tts.pinyin", "tts.variants"},
    "tts.flite": {"tts.utterance"},
    "tts.festival": {"tts.utterance", "tts.flite"},
    "tts.word_bank": {"tts.utterance"},
    "tts.kokoro_text": {"tts.utterance", "tts.espeak"},
    "tts.kokoro": {"tts.utterance", "tts.kokoro_text"},
    "tts.own_model": {"tts.utterance", "tts.voice_prompts"},
    "tts.cosyvoice_server": {"tts.utterance", "tts.voice_prompts"},
    "tts.alignment": {"tts.utterance", "tts.espeak", "tts.pinyin"},
    "tts.engines": {
        "tts.utterance", "tts.espeak", "tts.flite", "tts.festival", "tts.word_bank", "tts.own_model",
        "tts.cosyvoice_server",
        "tts.kokoro",
    },
    "tts.voices": {"tts.utterance", "tts.variants", "tts.espeak", "tts.alignment", "tts.engines"},
    "tts.voice_sets": {"tts.utterance", "tts.kokoro", "tts.voices"},
    "tts.augment": {"tts.utterance"},
    "data.record": set(),
    "data.decoding": set(),
    "data.pipeline": RECORDS,
    "data.crawl": RECORDS | {"data.pipeline"},
    "data.clean": RECORDS | {"data.pipeline"},
    "data.annotate": RECORDS | {"data.pipeline"},
    "data.conversations": RECORDS | {"data.annotate", "data.clean"},
    "data.steps": RECORDS | {"data.pipeline", "data.clean", "data.annotate"},
    "data.audit": RECORDS | {"data.pipeline", "data.clean", "data.annotate", "data.conversations"},
}  # fmt: skip

# Where a corpus becomes a trainer's batches: the modules of `corpus` that know torch and a trainer's types.
BATCHES = {
    f"speechgpt2.corpus.{name}"
    for name in ("codec_dataset", "codes", "task_dataset", "model_setup", "import_corpus", "show_examples", "smoke")
}


class Import:
    """An import: the dotted name of a module, and whether it happens when a function runs (late)."""

    def __init__(self, name: str, late: bool):
        self.name, self.late = name, late
        parts = name.split(".")
        self.package = (parts[1] if len(parts) > 1 else "__init__") if parts[0] == "speechgpt2" else None


def name_of(path: Path) -> str:
    parts = ("speechgpt2", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@cache
def has_subpackages(folder: Path) -> bool:
    return any(folder.glob("*/__init__.py"))


@cache
def unit_of(module: str) -> str:
    """The unit of a module's dotted name: "data.clean" of "speechgpt2.data.clean.quality"."""
    unit, folder = [], PACKAGE
    for part in module.split(".")[1:]:
        if not has_subpackages(folder):
            break
        unit.append(part)
        folder = folder / part
    return ".".join(unit)


@cache
def imports_of(path: Path) -> tuple[Import, ...]:
    return tuple(walk(ast.parse(path.read_text(encoding="utf-8")), path, late=False))


def walk(node: ast.AST, path: Path, late: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, late) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from (Import(name, late) for name in targets(child, path))
        elif isinstance(child, ast.If) and getattr(child.test, "id", "") == "TYPE_CHECKING":
            continue  # is never executed
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


def edges() -> set[tuple[str, str]]:
    """(importing module, imported module) within the project, late imports included."""
    return {(name_of(path), found.name) for path in MODULES for found in imports_of(path) if found.package is not None}


def cycles(pairs: Iterable[tuple[str, str]]) -> list[set[str]]:
    """The strongly connected components with more than one node (Tarjan 1972)."""
    graph: dict[str, set[str]] = {}
    for a, b in pairs:
        graph.setdefault(a, set()).update({b} - {a})
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[set[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph.get(node, ()):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            component = set(stack[stack.index(node) :])
            del stack[stack.index(node) :]
            if len(component) > 1:
                found.append(component)

    for node in list(graph):
        if node not in index:
            visit(node)
    return found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_imports_only_allowed_packages(path):
    package = package_of(path)
    assert package in MAY_IMPORT, f"add the new package {package} to MAY_IMPORT"
    if MAY_IMPORT[package] is None:
        return
    early = MAY_IMPORT[package] | {package}
    late = early | MAY_IMPORT_LATE.get(package, set())
    for found in imports_of(path):
        if found.package is not None:
            allowed = late if found.late else early
            assert found.package in allowed, f"{name_of(path)} may not import {found.name}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_imports_only_allowed_subpackages(path):
    unit = unit_of(name_of(path))
    if package_of(path) not in {known.split(".")[0] for known in UNITS_MAY_IMPORT} or "." not in unit:
        return
    assert unit in UNITS_MAY_IMPORT, f"add {unit} to UNITS_MAY_IMPORT"
    for found in imports_of(path):
        other = unit_of(found.name) if found.package == package_of(path) else unit
        assert other == unit or other in UNITS_MAY_IMPORT[unit], f"{name_of(path)} may not import {found.name}"


def test_no_import_cycle_between_modules():
    assert cycles(edges()) == []


def test_no_import_cycle_between_units():
    pairs = {(unit_of(a), unit_of(b)) for a, b in edges()}
    assert cycles(pairs) == []


def test_no_import_cycle_between_packages():
    pairs = {(a.split(".")[1], b.split(".")[1]) for a, b in edges() if a.count(".") and b.count(".")}
    assert cycles(pairs) == []


def test_cycles_are_found():
    assert cycles([("a", "b"), ("b", "c"), ("c", "b"), ("c", "d")]) == [{"b", "c"}]


@pytest.mark.parametrize("path", [p for p in MODULES if package_of(p) == "engine"], ids=name_of)
def test_engine_imports_only_the_protocol_of_duplex(path):
    for found in imports_of(path):
        assert found.package != "duplex" or found.name == "speechgpt2.duplex.protocol", found.name


def test_scheduler_imports_no_torch():
    found = {found.name.split(".")[0] for found in imports_of(PACKAGE / "engine" / "scheduler.py")}
    assert "dataclasses" in found and "torch" not in found


# Modules of a model's package that only its trainer uses.
OF_TRAINING = ("train", "train_plan", "losses", "discriminators", "listener", "teachers", "validation")


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_model_never_imports_its_trainer(path):
    if path.stem in OF_TRAINING or package_of(path) in ("training", "cli"):
        return
    if name_of(path) in BATCHES:
        return
    for found in imports_of(path):
        is_part = found.package in ("codec", "lm") and found.name.endswith(tuple(f".{part}" for part in OF_TRAINING))
        trainer = found.package == "training" or is_part
        assert not trainer, f"{name_of(path)} imports {found.name}"


WITHOUT_TORCH = [
    path
    for path in MODULES
    if package_of(path) in ("sessions", "data", "corpus", "curriculum", "dsp", "tts") and name_of(path) not in BATCHES
]


@pytest.mark.parametrize("path", WITHOUT_TORCH, ids=name_of)
def test_data_packages_load_without_torch(path):
    loaded = [found.name for found in imports_of(path) if not found.late]
    assert not any(name.split(".")[0] == "torch" for name in loaded)


@pytest.mark.parametrize("path", [p for p in MODULES if package_of(p) == "cli"], ids=name_of)
def test_command_line_imports_nothing_heavy_early(path):
    light = {"speechgpt2.errors", "speechgpt2.cli"}
    for found in imports_of(path):
        if not found.late and found.package is not None:
            assert any(found.name == name or found.name.startswith(name + ".") for name in light), found.name
        assert found.late or found.name.split(".")[0] not in {"torch", "numpy", "soundfile", "tokenizers"}, found.name


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_has_a_docstring(path):
    assert (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").strip()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_has_at_most_450_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 450


def test_classes_fit_on_a_few_screens():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                assert node.end_lineno - node.lineno < 249, f"{path}: {node.name} is too long; split it"
