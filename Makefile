# Every target sets up what it needs, once: the stamps in .venv say what has been installed.
#
#   make quickstart   train the embedded model to draw in one step, score it, write the report
#   make test         the test suite
#   make check        lint, formatting, types
#   make docs         the documentation, in site/
#
# PYTHON=… chooses another interpreter, QUICKSTART=… and PYTEST=… pass options on.

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install --disable-pip-version-check --quiet -c constraints.txt
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))

# The first of these that runs and is new enough.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$p && break; done)
QUICKSTART ?=
PYTEST ?= -n 2

.PHONY: help quickstart test check docs clean
.DEFAULT_GOAL := help

help:
	@sed -n '2,9s/^# \{0,1\}//p' Makefile

quickstart: $(VENV)/.core
	$(BIN)/twinflow quickstart $(QUICKSTART)

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) site build dist src/*.egg-info

$(BIN)/python:
	@if [ -z "$(PYTHON)" ] || ! $(PYTHON) -c '$(NEW_ENOUGH)'; then \
		echo "twinflow needs Python 3.11 or newer, and found none. Install it, or say where it is:" >&2; \
		echo "    make $(firstword $(MAKECMDGOALS)) PYTHON=/path/to/python3.11" >&2; exit 1; fi
	$(PYTHON) -m venv $(VENV)

# torch comes first and alone: the build that suits the machine (CPU, CUDA, …), which nothing after it replaces.
$(VENV)/.torch: $(BIN)/python constraints.txt
	@echo "Setting up $(VENV): torch (once; the largest download)"
	$(INSTALL) torch
	@touch $@

$(VENV)/.core: $(VENV)/.torch pyproject.toml
	@echo "Setting up $(VENV): twinflow and what it needs (once)"
	$(INSTALL) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	@echo "Setting up $(VENV): the tools of the tests and checks (once)"
	$(INSTALL) -e '.[dev]'
	@touch $@

$(VENV)/.docs: $(VENV)/.core
	@echo "Setting up $(VENV): mkdocs (once)"
	$(INSTALL) -e '.[docs]'
	@touch $@
