# `make demo` and `make test` set up whatever is missing first. `make help` lists the targets.

# A python3.11 that runs, or else python3: deploy/setup.py says in one sentence when that is not 3.11.
PYTHON ?= $(shell for p in python3.11 python3; do $$p -c '' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin

.PHONY: help setup demo test chaos lint lock audit
.DEFAULT_GOAL := help

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-6s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Install what is missing into .venv, and fetch the model and the data
	@$(if $(PYTHON),,echo "error: no Python was found: install Python 3.11 and run 'make setup PYTHON=/path/to/python3.11'" >&2; exit 2;) \
	$(PYTHON) deploy/setup.py

demo: setup ## RLHF of a real language model from real human ratings (under 15 minutes on two cores)
	@$(BIN)/leash demo

test: lint ## Formatting, lint, types, unit tests, then tests on the real stack
	$(BIN)/python -m pytest -m "not real"
	$(BIN)/python -m pytest -m real --durations=25

chaos: setup ## Kill and stall 30 processes of a tiny run, one after the other (SEED=0, FAULTS=30)
	@$(BIN)/python -m tests.end_to_end.chaos --seed $(or $(SEED),0) --faults $(or $(FAULTS),30)

lint: setup ## Formatting, lint and strict types alone
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy --strict

lock: setup ## Choose the newest versions that pyproject.toml allows, pinned by hash
	@$(BIN)/python deploy/lock.py

audit: setup ## The lock, yanked releases, hashes, licences, vendored JavaScript, known vulnerabilities
	@$(BIN)/python -m deploy.audit
