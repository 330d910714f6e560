# One verb per need; `make` alone lists them. Every verb makes the environment that it needs, inside this folder.

PYTHON ?= python3
# Pinned, so that the tests of the builder run against the torch they were written with.
TORCH ?= torch==2.13.0
# Tests and benchmarks that need photographs read this folder, and skip with a word where it is absent.
NNF_DATA ?= $(wildcard ../shared/data)
export NNF_DATA

RUN_VENV := .venv
TEST_VENV := .venv-test
RUN := $(RUN_VENV)/bin
TEST := $(TEST_VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench wheel clean

help: ## list these verbs
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-7s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(RUN_VENV)/ready ## watch a model keep its deadline while the CPU gets busy (one minute, no torch)
	@$(RUN)/nnf-edge demo

test: $(TEST_VENV)/ready lint ## everything that must hold: style, types, layers, all tests
	$(TEST)/python -m pytest

lint: $(TEST_VENV)/ready ## style, types and the one-way layers only (seconds)
	$(TEST)/ruff check .
	$(TEST)/ruff format --check .
	$(TEST)/mypy
	$(TEST)/lint-imports

bench: $(RUN_VENV)/ready ## measure the subnets of the bundled model on this machine (BUNDLE=path for your own)
	@$(RUN)/nnf-edge benchmark $(BUNDLE)

wheel: $(TEST_VENV)/ready ## build dist/nnf_edge-*.whl
	$(TEST)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean: ## remove environments, caches and built files
	rm -rf $(RUN_VENV) $(TEST_VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The runtime only: what a device gets.
$(RUN_VENV)/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v < (3, 14) else f"nnf-edge needs Python 3.10 to 3.13, {sys.executable} is {v[0]}.{v[1]}: make demo PYTHON=python3.12")'
	@echo "making $(RUN_VENV) (once; the runtime has no torch)"
	@$(PYTHON) -m venv $(RUN_VENV)
	@$(RUN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

# The builder and the tools of the tests as well.
$(TEST_VENV)/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v < (3, 14) else f"nnf-edge needs Python 3.10 to 3.13, {sys.executable} is {v[0]}.{v[1]}: make test PYTHON=python3.12")'
	@echo "making $(TEST_VENV) (once; with torch, minutes)"
	@$(PYTHON) -m venv $(TEST_VENV)
	@$(TEST)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	@$(TEST)/python -m pip install --quiet --disable-pip-version-check --editable ".[build,test]"
	@# Architectures that nobody here wrote; without its dependencies, which the tests do not need.
	@$(TEST)/python -m pip install --quiet --disable-pip-version-check --no-deps "pytorchcv==0.0.74"
	@touch $@
