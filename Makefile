# The two commands: `make demo` and `make test`. Each sets up .venv first; a second call starts at once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-done
DEMO ?= output/demo
TEST_ARGS ?=
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

.PHONY: help setup demo test test-slow lint types layers format clean

help:
	@echo "make setup      create .venv with torch, Detectron2 and this package (Python 3.10 or newer)"
	@echo "make demo       generate data, train, evaluate with the official metric, write $(DEMO)/report.html"
	@echo "make test       the test suite"
	@echo "make test-slow  the tests marked slow too"
	@echo "make lint types layers format clean"

setup: $(STAMP)

$(STAMP): pyproject.toml setup.py constraints.txt scripts/install_detectron2.py scripts/setup_venv.sh
	PYTHON="$(PYTHON)" bash scripts/setup_venv.sh $(VENV)
	@touch $@

demo: $(STAMP)
	$(BIN)/python -W ignore::FutureWarning scripts/run_demo.py --output $(DEMO)

test: $(STAMP)
	$(PYTEST) -m "not slow and not gpu" $(TEST_ARGS)

test-slow: $(STAMP)
	$(PYTEST) -m "slow and not gpu" $(TEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/pyright

layers: $(STAMP)
	$(BIN)/lint-imports --no-logo

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist output *.egg-info .pytest_cache .ruff_cache
