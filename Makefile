# One command each on a fresh machine:  make demo  |  make test
# Another interpreter:                  make test PYTHON=python3.12   (the environment is made anew for it)

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Passed on to pytest: make test ARGS="-k requirements"
ARGS ?=
# Files of tests at a time: most of them wait for processes. JOBS=0: one after the other, in this process.
JOBS ?= 3
DEMO_ARGS ?=
# The theme tells each build of its successor; the builds here are told what they need.
export NO_MKDOCS_2_WARNING := 1

PYTHON_VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null)
# The environment's Python; changes when PYTHON does, which clears the environment and with it the stamps below.
READY := $(VENV)/.python-$(PYTHON_VERSION)

.DEFAULT_GOAL := help
.PHONY: help demo test lint format docs docs-serve clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.demo  ## Install, run example tasks on two simulated GPUs (or the real ones), show them live
	@$(BIN)/celery-allocator demo $(DEMO_ARGS)

test: $(VENV)/.test  ## Install, run the whole suite (TEST_LEDGER=redis: on redis-server from PATH)
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

lint: $(VENV)/.test  ## Style, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(VENV)/.test  ## Let ruff fix and format what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.docs  ## Build the documentation's site in build/site; nothing in it may lead nowhere
	@$(BIN)/mkdocs build --quiet --strict
	@echo "open build/site/index.html"

docs-serve: $(VENV)/.docs  ## Serve the documentation while you write it
	@$(BIN)/mkdocs serve --livereload

clean:  ## Remove what make and the tools made here (not the demo's output)
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

$(READY):
	@test -n "$(PYTHON_VERSION)" || { echo "make: $(PYTHON) does not run; name one with PYTHON=…" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "make: Python 3.10 or newer is needed, $(PYTHON) is $(PYTHON_VERSION)" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.demo: pyproject.toml $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo]'
	@touch $@

$(VENV)/.docs: pyproject.toml $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@touch $@

$(VENV)/.test: pyproject.toml $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@
