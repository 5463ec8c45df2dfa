# Everything runs inside .venv; `make demo` and `make test` install what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The CPU build of PyTorch. Empty TORCH to let pip choose (a CUDA machine: TORCH=torch).
TORCH ?= torch==2.13.0
JOBS ?= 2

.PHONY: demo test test-slow check bench docs format clean

demo: $(VENV)/.runtime
	$(BIN)/trimode compare "Write three short sentences about the sea."

test: $(VENV)/.dev
	$(BIN)/pytest -n $(JOBS) -m "not slow"

test-slow: $(VENV)/.dev
	$(BIN)/pytest -m slow

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/pass_cost.py

$(VENV)/.runtime: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(BIN)/pip install --quiet --group dev
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
