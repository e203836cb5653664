# Everything a person or a machine runs. `make demo` and `make test` are enough to begin.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
SEED ?= 1
COMETBFT := v0.38.25
COMETBFT_STAMP := .tools/cometbft-$(COMETBFT)
DIR ?=
ONLY ?=

.PHONY: help venv demo outages test test-fast mutants lint bench cometbft abci-proto sim lock clean

help: ## show this
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

$(STAMP): requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "DDS needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "Python's venv module is missing; on Debian: apt-get install python3-venv" >&2; exit 2; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)

venv: $(STAMP) ## set up .venv from the hash-locked requirements

demo: $(STAMP) ## a local network of 20 nodes stores DIR, loses six, gets every byte back
	$(BIN)/python -m dds.apps.demo $(if $(DIR),--dir "$(DIR)")

outages: $(STAMP) ## every region, then every operator of a network of 42 nodes is killed in turn, and 200 objects are read
	$(BIN)/python -m dds.apps.outages

lint: $(STAMP) ## ruff, mypy --strict, import layers
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test: lint ## lint, then every test
	$(BIN)/pytest -n 2 --dist loadgroup --durations 10

test-fast: $(STAMP) ## unit, property and vector tests only
	$(BIN)/pytest -n 2 tests/unit tests/property tests/vectors

mutants: $(STAMP) ## plant mistakes in the ledger's rules: a test must notice each (make mutants ONLY=market)
	$(BIN)/python -m tests.mutants $(if $(ONLY),--only "$(ONLY)")

bench: $(STAMP) ## speed and memory as ratios against a baseline of the same run
	$(BIN)/python -m benchmarks

$(COMETBFT_STAMP):
	@command -v go >/dev/null || { echo "building CometBFT needs Go 1.21 or newer (it fetches the toolchain it wants); on Debian: apt-get install golang-go" >&2; exit 2; }
	GOBIN="$(CURDIR)/.tools/bin" GOTOOLCHAIN=auto go install github.com/cometbft/cometbft/cmd/cometbft@$(COMETBFT)
	@touch $@

cometbft: $(COMETBFT_STAMP) ## build the CometBFT that the abci engine's tests run, into .tools/bin

abci-proto: ## generate the ABCI messages anew from abci.proto (needs grpcio-tools)
	$(PYTHON) -m grpc_tools.protoc -Isrc --python_out=src --pyi_out=src src/dds/engines/abci.proto

sim: $(STAMP) ## replay the seeded fault simulation: make sim SEED=7
	$(BIN)/pytest -q tests/sim --sim-seed $(SEED)

lock: ## renew the hash-locked requirements (needs pip-tools)
	cd requirements && for f in runtime dev; do pip-compile --quiet --upgrade --generate-hashes --strip-extras --allow-unsafe --no-header --no-emit-index-url --no-emit-find-links --no-emit-trusted-host -o $$f.txt $$f.in; done

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
