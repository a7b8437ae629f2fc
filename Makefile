# Two commands are all a fresh machine needs: `make demo` and `make test`. Both create .venv and install into it.

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-all lint docs install clean

demo: install
	$(BIN)/headrace train --algo ppo --env CartPole-v1 --sampler cpu

test: install lint
	$(BIN)/pytest -m "not slow and not gpu"

test-all: install lint
	$(BIN)/pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: install
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[all,dev,docs]"
	touch $(INSTALLED)

clean:
	rm -rf $(VENV) build docs/_build *.egg-info
