# make chat       answer the sample questions with the built-in model: prints the text, writes answer.wav
# make demo-data  run the data pipeline on a small local web site: crawl, clean, label, report
# make demo-train the same, then some training steps on the labelled clips
# make test       run the tests
# make check      run all checks: format, lint, types, tests
# make format     format the code
# make clean      remove the virtual environment and the tools' caches
#
# Each target works on a fresh checkout and needs make and python3 (3.10 or newer) with venv. Variables:
#   PYTHON     the Python interpreter
#   VENV       folder of the virtual environment
#   PIP_ARGS   arguments for pip, e.g. --extra-index-url https://download.pytorch.org/whl/cpu: PyTorch without CUDA

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_ARGS)

# Some packages of `synthesis` and `eval` come as source only. Without a C++ compiler and Python's headers they are not
# installed, and their tests are skipped.
comma := ,
HEADERS := $(shell $(PYTHON) -c "import os, sysconfig; print(os.path.join(sysconfig.get_path('include'), 'Python.h'))")
COMPILER := $(if $(wildcard $(HEADERS)),$(shell command -v c++))
TEST_EXTRAS ?= dev$(if $(COMPILER),$(comma)synthesis$(comma)eval)

# One thread for each of at most four processes: several threads in each would wait for one another.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

.PHONY: chat demo-data demo-train test check format clean

chat: $(VENV)/.installed
	$(BIN)/sg2 chat $(sort $(wildcard examples/question*.wav)) -o answer.wav

demo-data: $(VENV)/.installed-data
	$(BIN)/sg2 data demo -o runs/demo-data

demo-train: demo-data
	$(BIN)/sg2 train lm recipes/demo-train.yaml --data runs/demo-data/run --init mini --codec mini -o runs/demo-train --resume

test: $(VENV)/.installed-dev
	$(PYTEST)

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST)

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
