# The verbs of this project, for people and for CI. `make` lists them.
PYTHON ?= python3
BIN := .venv/bin
# Tests wait more than they compute, so more of them run at a time than there are cores (`JOBS=0`:
# one after another, in one process); each of these processes has servers of its own.
JOBS ?= 5
# Each of a thousand programs, and each of these processes, would compile all modules anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup servers programs demo up unit test chaos check format contract lock bench clean

help: ## list the verbs
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: .venv/.complete ## make .venv from the lock file

# A venv needs ensurepip, which Debian packs apart; `install.py` sees to it.
.venv/.complete: requirements.lock pyproject.toml
	@$(PYTHON) tests/sandbox/install.py
	@echo "making .venv from requirements.lock (about half a minute) …"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

servers:
	@$(PYTHON) tests/sandbox/install.py

programs:
	@$(PYTHON) tests/sandbox/install.py tests

demo: servers setup ## play a whole session on real servers, and show it
	@$(BIN)/python -m tests.programs.demo

up: servers setup ## start the same and stay, until Ctrl-C
	@$(BIN)/python -m tests.programs.demo up

unit: setup ## run the tests that need no server
	@$(BIN)/python -m pytest -n $(JOBS) tests/unit $(ARGS)

test: programs setup ## run all tests, on real servers
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadscope --no-loadscope-reorder $(ARGS)

chaos: servers setup ## break everything while commands come in, heal, check what is left
	@$(BIN)/python -m tests.chaos $(ARGS)

check: setup ## lint, format, strict types, import walls, the contract by its official parser
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m tests.programs.official_parser

format: setup ## mend what lint and format can mend
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

contract: setup ## write the contract and the list of commands anew (ARGS=--release: freeze it)
	@$(BIN)/python -m shared.contract $(ARGS)
	@$(BIN)/python -m tests.programs.command_lines

bench: servers setup ## measure beside limits of the same run: table, JSON, picture (QUICK=1: less work)
	@$(BIN)/python -m tests.bench $(if $(QUICK),--quick) $(ARGS)

lock: setup ## write the lock files anew from pyproject.toml
	@$(BIN)/uv pip compile pyproject.toml --extra dev --extra tracing --universal --python-version 3.11 \
		--generate-hashes --no-header --no-emit-index-url --no-emit-find-links --quiet \
		-o requirements.lock
	@$(BIN)/uv pip compile pyproject.toml --extra tracing --constraint requirements.lock --universal \
		--python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-emit-find-links \
		--quiet -o requirements-image.lock
	@$(BIN)/uv pip compile pyproject.toml --extra peers --constraint requirements.lock --universal \
		--python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-emit-find-links \
		--quiet -o requirements-peers.lock
	@$(BIN)/uv pip compile --group pyproject.toml:build --constraint requirements.lock --universal \
		--python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-emit-find-links \
		--quiet -o requirements-build.lock

clean: ## remove what was made here
	rm -rf .venv tests/node/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache bench-results
