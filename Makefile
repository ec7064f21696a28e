# Everything that is needed comes into .venv; nothing outside this directory is changed.
# Works as root and as an ordinary user, with or without a PostgreSQL on the machine.

PYTHON ?= python3
VENV ?= .venv
# Worker processes for the tests; the servers are shared between them.
WORKERS ?= 4
PYTEST_ARGS ?=
# The tools that bench-peers compares with have an environment of their own.
PEERS_VENV ?= .venv-peers
PEERS_ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PEERS_STAMP := $(PEERS_VENV)/.installed
SUITABLE = import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
# Neighbours stay together, for what a module shares; who has ended takes from the others.
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist=worksteal $(PYTEST_ARGS)

.DEFAULT_GOAL := help
.PHONY: help demo test test-all check format perf bench bench-peers clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(STAMP) ## 100 offices into an embedded PostgreSQL: snapshot, damage, restore, compare
	@$(BIN)/python examples/demo.py

test: $(STAMP) ## the tests of every commit, on real servers
	$(PYTEST) -m "not slow and not performance"

test-all: $(STAMP) ## slow tests too
	$(PYTEST) -m "not performance"

check: $(STAMP) ## lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## put the code into its form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

perf: $(STAMP) ## the limits, with a report in perf-reports/; PERF_TEST_SCALE=medium or large for more
	$(BIN)/python -m pytest -m performance tests/performance $(PYTEST_ARGS)

bench: $(STAMP) ## measure what the README claims
	$(BIN)/python -m benchmarks

bench-peers: $(STAMP) $(PEERS_STAMP) ## measure other tools beside ours, write docs/performance.md
	$(BIN)/python -m benchmarks.peers --peers $(PEERS_VENV)/bin $(PEERS_ARGS)

clean: ## remove what make made
	rm -rf $(VENV) $(PEERS_VENV) build dist .pytest_cache .mypy_cache .ruff_cache

# Named versions are tried when python3 is older than 3.11 or lacks venv.
$(STAMP): pyproject.toml constraints.txt
	@set -eu; \
	for name in $(PYTHON) python3 python3.13 python3.12 python3.11 /usr/bin/python3; do \
	    found=$$(command -v "$$name" || true); \
	    if [ -n "$$found" ] && "$$found" -c '$(SUITABLE)' 2>/dev/null; then python="$$found"; break; fi; \
	done; \
	if [ -z "$${python:-}" ]; then \
	    echo "No Python 3.11 or newer with venv was found; name one: make PYTHON=/path/to/python3.12" >&2; \
	    exit 1; \
	fi; \
	echo "Installing into $(VENV) with $$("$$python" --version)"; \
	if ! $(BIN)/python -c '$(SUITABLE)' 2>/dev/null; then "$$python" -m venv --clear $(VENV); fi; \
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'; \
	touch $(STAMP)

# The same Python as ours, so that its start costs the same.
$(PEERS_STAMP): benchmarks/peers.txt | $(STAMP)
	@$(BIN)/python -m venv --clear $(PEERS_VENV)
	@$(PEERS_VENV)/bin/python -m pip install --quiet --requirement benchmarks/peers.txt
	@touch $(PEERS_STAMP)
