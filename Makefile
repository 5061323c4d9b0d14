# Everything that is done with this project. `make` lists it.
SHELL := /bin/bash
PORT ?= 2024
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV := .venv
PY := $(VENV)/bin/python
export PYTHONDONTWRITEBYTECODE := 1

.DEFAULT_GOAL := help
.PHONY: help demo test chat dev check interop bench sweep ci lock clean

help: ## List the commands
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(VENV)/.ready: requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is missing: install it, or run make PYTHON=/path/to/python"; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than Python 3.11: run make PYTHON=/path/to/python3.11"; exit 2; }
	@"$(PYTHON)" -m venv --help >/dev/null 2>&1 || { echo "Python's venv module is missing: install your system's python3-venv"; exit 2; }
	@echo "Setting up $(VENV) (once, about a minute) ..."
	@test -x $(PY) || "$(PYTHON)" -m venv $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements.lock
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(VENV)/.ready ## Play the whole story on the embedded world, and verify each step
	@$(PY) -m agent demo $(ARGS)

test: $(VENV)/.ready ## Run the tests
	@$(PY) -m pytest -q -n auto --dist loadfile --ignore=tests/interop $(ARGS)

chat: $(VENV)/.ready ## Talk to the assistant in the terminal
	@$(PY) -m agent chat --port $(PORT) $(ARGS)

dev: $(VENV)/.ready ## Serve the assistant with langgraph dev (PORT=2024)
	@DEPUTIZE_EMBEDDED=1 DEPUTIZE_URL=http://127.0.0.1:$(PORT) \
		$(VENV)/bin/langgraph dev --host 127.0.0.1 --port $(PORT) --no-browser --no-reload --n-jobs-per-worker 10

check: $(VENV)/.ready ## Lint, format, types, import floors, casebook, docs
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(PY) -m pytest -q tests/test_floors.py tests/test_casebook.py tests/test_docs.py

interop: $(VENV)/.ready ## Try it against real servers that nobody here wrote
	@$(PY) -m pytest -q tests/interop $(ARGS)

bench: $(VENV)/.ready ## Measure, as ratios inside one run; writes bench.json
	@$(PY) -m tests.bench $(ARGS)

sweep: $(VENV)/.ready ## The long runs: many more random examples
	@HYPOTHESIS_PROFILE=sweep $(PY) -m pytest -q -n auto --dist loadfile --ignore=tests/interop $(ARGS)

ci: check test interop ## What .ci/run calls

lock: ## Write requirements.lock anew from pyproject.toml (needs uv)
	@uv pip compile --quiet --universal --python-version 3.11 --extra dev --generate-hashes --no-emit-index-url --no-annotate \
		--no-header --output-file requirements.lock pyproject.toml

clean: ## Remove what was set up and the embedded world's files
	@rm -rf $(VENV) .deputize .langgraph_api bench.json .mypy_cache .ruff_cache .pytest_cache .hypothesis
