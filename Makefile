# Two commands are all a fresh machine needs: `make demo` and `make test`. Both create .venv and install into it.

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
#: Two processes, each of which takes over what is left of the other's tests when its own are done.
PYTEST := $(BIN)/pytest -n 2 --dist worksteal

# pytest rewrites the asserts of the tests, which takes longer than to collect them, and keeps the result as bytecode.
unexport PYTHONDONTWRITEBYTECODE

#: What the compiled part must not change: exactness, the contract of environments, faults.
PURE := $(patsubst %,tests/test_%.py,answers contract_checks faults native rng same_batches serial_sampler traj_info)

#: Where `make bench-peers` installs the libraries that are measured beside headrace; outside the repository.
PEERS ?= $(HOME)/.cache/headrace-peers

.PHONY: demo test test-pure wheel test-programs test-all coverage mutants lint docs install clean bench-peers

demo: install
	$(BIN)/headrace train --algo ppo --env CartPole-v1 --sampler cpu

test: install lint
	$(PYTEST) -m "not (programs or slow or gpu)"

test-pure: install
	HEADRACE_PURE=1 $(PYTEST) -m "not (programs or slow or gpu)" $(PURE)

test-programs: install
	$(PYTEST) -m "programs and not (slow or gpu)"

test-all: install lint coverage mutants
	$(PYTEST) -m "slow or gpu"

coverage: install
	COVERAGE_FILE=$(CURDIR)/.coverage $(PYTEST) -m "not (slow or gpu)" --cov --cov-report=term:skip-covered

mutants: install
	$(BIN)/python -m tests.mutants

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: install
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build

bench-peers: install
	mkdir -p build
	$(BIN)/python benchmarks/peers/install.py --venvs $(PEERS)
	$(BIN)/python benchmarks/peers/compare.py --venvs $(PEERS) --out build/peers.json

wheel: install
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

install: $(INSTALLED)

$(INSTALLED): pyproject.toml setup.py constraints.txt $(wildcard headrace/_native/*.pyx headrace/_native/*.h)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[all,dev,docs]"
	touch $(INSTALLED)

clean:
	rm -rf $(VENV) build docs/_build *.egg-info
