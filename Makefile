# The single door. Every target makes .venv first and installs into it what the target needs.
#
#   make run                      the whole loop on the embedded tiny model
#   make run ARGS="--help"        the same command with options
#   make test                     the tests            (PYTEST_ARGS="-k sampler")
#   make check                    format, lint, types
#   make bench                    the benchmarks that run on this machine
#
# PYTHON=python3.12 picks the interpreter; PIP_ARGS goes to every `pip install`.

ifndef PYTHON
PYTHON := $(shell for p in python3 python3.12 python3.11 python3.13; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
endif
ARGS ?=
PIP_ARGS ?=
PYTEST_ARGS ?=
# Side by side, each process on one thread: two of OpenMP's pools on two cores wait for each other.
PYTEST_JOBS ?= 2

VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml $(wildcard setup.py) $(wildcard csrc/*)
PIP_INSTALL := @$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS)

.PHONY: run test check bench format clean
.DELETE_ON_ERROR:

run: $(VENV)/.ready
	$(BIN)/python -m srlm_fast.run $(ARGS)

test: export OMP_NUM_THREADS := 1
test: $(VENV)/.ready-test
	$(BIN)/python -m pytest -n $(PYTEST_JOBS) --dist worksteal $(PYTEST_ARGS)

check: $(VENV)/.ready-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.ready-bench
	$(BIN)/python -m benchmarks $(ARGS)

format: $(VENV)/.ready-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build *.egg-info srlm_fast/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "srlm_fast: no Python 3.11 or newer found; try: make PYTHON=/path/to/python3.12" >&2; exit 2; }
	@command -v $${CXX:-c++} >/dev/null || { echo "srlm_fast: no C++ compiler found (g++ or clang++; on Debian: apt-get install g++)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

# One stamp per set of extras; a newer source or pyproject.toml builds the extension again.
$(VENV)/.ready: $(SOURCES) | $(BIN)/python
	@echo "installing into $(VENV) (minutes, the first time)"
	$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/.ready-test: $(SOURCES) | $(BIN)/python
	@echo "installing into $(VENV) (minutes, the first time)"
	$(PIP_INSTALL) --editable '.[test]'
	@touch $@ $(VENV)/.ready

$(VENV)/.ready-bench: $(SOURCES) | $(BIN)/python
	@echo "installing into $(VENV) (minutes, the first time)"
	$(PIP_INSTALL) --editable '.[bench]'
	@touch $@ $(VENV)/.ready
