# The verbs of this project, for people and for CI. `make` lists them.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup servers demo up test chaos check format lock bench clean

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

demo: servers setup ## play a whole session on real servers, and show it
	@$(BIN)/python -m tests.demo

up: servers setup ## start the same and stay, until Ctrl-C
	@$(BIN)/python -m tests.demo up

test: servers setup ## run all tests, on real servers
	@$(BIN)/python -m pytest $(ARGS)

chaos: servers setup ## break everything while commands come in, heal, check what is left
	@$(BIN)/python -m tests.chaos $(ARGS)

check: setup ## lint, format, strict types, import walls
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: setup ## mend what lint and format can mend
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

bench: servers setup ## measure, print a table, write JSON (QUICK=1: a tenth of the work)
	@$(BIN)/python -m tests.bench $(if $(QUICK),--quick)

lock: setup ## write the lock files anew from pyproject.toml
	@$(BIN)/uv pip compile pyproject.toml --extra dev --extra tracing --universal --python-version 3.11 \
		--generate-hashes --no-header --no-emit-index-url --no-emit-find-links --quiet \
		-o requirements.lock
	@$(BIN)/uv pip compile pyproject.toml --extra image --extra tracing --constraint requirements.lock --universal \
		--python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-emit-find-links \
		--quiet -o requirements-image.lock

clean: ## remove what was made here
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache bench-results
