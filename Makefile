# make chat      ask the built-in model the sample questions: writes answer.wav, prints the text
# make demo-data see the data system at work: a small web site on this machine -> crawled, cleaned, labelled, reported on
# make test      run the tests
# make check     what a change must pass: format, lint, types, tests
# make format    format the code
# make clean     remove the virtual environment and what tools left behind
#
# Each works by itself on a fresh checkout: it needs python3 (3.10 or newer) with venv, and make. Variables:
#   PYTHON     the interpreter to build the environment from
#   VENV       where the environment goes
#   PIP_ARGS   for pip, e.g. --extra-index-url https://download.pytorch.org/whl/cpu: torch without its gigabytes of CUDA

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_ARGS)

# Some judges and the pitch tracker come as source only; without a C++ compiler and Python's headers their tests are skipped.
comma := ,
HEADERS := $(shell $(PYTHON) -c "import os, sysconfig; print(os.path.join(sysconfig.get_path('include'), 'Python.h'))")
COMPILER := $(if $(wildcard $(HEADERS)),$(shell command -v c++))
TEST_EXTRAS ?= dev$(if $(COMPILER),$(comma)synthesis$(comma)eval)

.PHONY: chat demo-data test check format clean

chat: $(VENV)/.installed
	$(BIN)/sg2 chat $(sort $(wildcard examples/question*.wav)) -o answer.wav

demo-data: $(VENV)/.installed-data
	$(BIN)/sg2 data demo -o runs/demo-data

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache

$(VENV)/.created:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'error: Python 3.10 or newer is needed, see PYTHON')"
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml constraints.txt
	$(INSTALL) -e .
	touch $@

$(VENV)/.installed-data: $(VENV)/.created pyproject.toml constraints.txt
	$(INSTALL) -e '.[crawl,data]' espeakng-loader pypinyin
	touch $@ $(VENV)/.installed

$(VENV)/.installed-dev: $(VENV)/.created pyproject.toml constraints.txt
	$(INSTALL) -e '.[$(TEST_EXTRAS)]'
	touch $@ $(VENV)/.installed
