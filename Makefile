# make demo    photos through the bundled tokenizer: contact sheet, web page, table
# make test    style, types, and the tests, about four minutes
# Both install what they need into .venv first; the second time that is done already.

PYTHON ?= python3
IMAGES ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install check test test-all demo

help:
	@sed -n 's/^# //p' Makefile

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("error: Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; name another: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV); the first time takes a few minutes"
	@PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check
	$(BIN)/pytest -q

test-all: check
	$(BIN)/pytest -q -m "not gpu and not network"

demo: install
	$(BIN)/semhitok demo $(if $(IMAGES),"$(IMAGES)") --out demo
