"""The wheel: built, installed into a new environment that has the core dependencies only, and used."""

import os
import re
import subprocess
import sys
import venv
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest

from tests import needs

ROOT = Path(__file__).parent.parent
needs.module("hatchling", "dev")


def run(*command, **options):
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert result.returncode == 0, result.stderr
    return result.stdout


def requirements(name, extra=None):
    """The names of a distribution's requirements, those of one extra or those of none."""
    from packaging.requirements import Requirement

    for text in distribution(name).requires or []:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra or ""}):
            yield requirement.name


def closure(names):
    """These distributions with all that they require."""
    found, pending = {}, list(names)
    while pending:
        name = re.sub(r"[-_.]+", "-", pending.pop()).lower()
        if name not in found:
            found[name] = distribution(name)
            pending += requirements(name)
    return found.values()


def link_into(folder: Path, installed: Distribution):
    """Make an installed distribution visible in another environment."""
    for file in installed.files or ():
        top = file.parts[0]
        if top not in ("..", "__pycache__") and not (folder / top).exists():
            (folder / top).symlink_to(installed.locate_file(top))


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """`sg2` of the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env", with_pip=False, symlinks=True)
    (site,) = folder.glob("env/lib/python*/site-packages")
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", site, wheel)
    for installed in closure(requirements_of_the_wheel(site)):
        link_into(site, installed)
    return [folder / "env" / "bin" / "python", site / "bin" / "sg2"]


def requirements_of_the_wheel(site):
    from packaging.requirements import Requirement

    (metadata,) = site.glob("speechgpt2-*.dist-info")
    core = [Requirement(text) for text in Distribution.at(metadata).requires or []]
    return [requirement.name for requirement in core if "extra ==" not in str(requirement.marker)]


def sg2(command, *arguments):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return run(*command, *arguments, env=environment, cwd=command[0].parent)


@pytest.mark.slow
def test_wheel_works_with_core_dependencies_only(command):
    assert "transcribe" in sg2(command, "--help")
    assert re.match(r"speechgpt2 \d", sg2(command, "--version"))
    assert "mini" in sg2(command, "info", "mini")
    question = ROOT / "examples" / "question-1.wav"
    assert sg2(command, "transcribe", question) == "What's three plus five?\n"


@pytest.mark.slow
def test_wheel_says_what_an_extra_needs(command):
    result = subprocess.run([*map(str, command), "serve"], capture_output=True, text=True, cwd=command[0].parent,
                            env={"PATH": os.environ["PATH"], "HOME": str(command[0].parent)})  # fmt: skip
    assert result.returncode == 2 and "speechgpt2[server]" in result.stderr and result.stderr.count("\n") == 1
