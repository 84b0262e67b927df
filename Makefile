PYTHON ?= python3
BIN := .venv/bin
DIST := dist
GPU_PYTHON := $(BIN)/python
OLDEST := $(shell sed -n 's/^requires-python = ">=\(.*\)"/\1/p' pyproject.toml)
NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < tuple(map(int, "$(OLDEST)".split("."))))'

.DEFAULT_GOAL := help
.PHONY: help environment demo bench gpu docs test lint format types wheel clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

environment:
	@$(PYTHON) $(NEW_ENOUGH) 2>/dev/null || { echo "Python $(OLDEST) or newer is needed, got $$($(PYTHON) --version 2>&1): name one, as in make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv

# A .venv that is half-made, or whose Python is too old or gone, is made anew.
.venv/.ready: pyproject.toml constraints.txt $(shell test -e .venv/.ready && $(BIN)/python $(NEW_ENOUGH) 2>/dev/null || echo environment)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[examples,dev]'
	@touch $@

demo: .venv/.ready ## Train, evaluate and show CMRAN on the embedded procedural set (DEMO_ARGS="--epochs 2" to pass options)
	$(BIN)/python examples/ave_cmran.py $(DEMO_ARGS)

bench: .venv/.ready ## Measure speed and memory, compared with alternatives, on the CPU (BENCH_ARGS="--quick" to pass options)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

gpu: $(if $(filter $(BIN)/python,$(GPU_PYTHON)),.venv/.ready) ## Test and measure on a GPU, in 8 minutes (GPU_PYTHON=python3 to use this Python, GPU_ARGS="--output DIR")
	PYTHONPATH="src:examples:.:$$PYTHONPATH" $(GPU_PYTHON) -m benchmarks.gpu $(GPU_ARGS)

docs: .venv/.ready ## Build the site into docs/_build/html; a warning is an error
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --nitpicky docs docs/_build/html

test: .venv/.ready ## Run the tests and the doctests (TEST_ARGS="-k masks" to select some)
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile $(TEST_ARGS)

lint: .venv/.ready ## Check style and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: .venv/.ready ## Format the code, and fix what ruff can fix
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: .venv/.ready ## Check types
	$(BIN)/mypy

wheel: .venv/.ready ## Build and check wheel and sdist in dist/ (DIST=... to choose another place)
	$(BIN)/python -m build --outdir $(DIST)
	$(BIN)/python -m twine check --strict $(DIST)/*

clean: ## Remove what the targets made, except runs/
	rm -rf .venv dist build docs/_build docs/gallery/quickstart.py docs/guides .pytest_cache .mypy_cache .ruff_cache .hypothesis
