# Everything starts here; `make` alone says what there is. Each target sets up what it needs.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
DEMO ?= runs/demo

.DEFAULT_GOAL := help
.PHONY: help demo test check bench clean

help: ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

# torch goes first and by itself, so that a CPU build that lies on the machine is taken
$(VENV)/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: $(VENV)/installed ## phantom, prior, training, pseudo-labels, test: table and pictures
	$(BIN)/python -m stipple_monai demo --out $(DEMO)

test: $(VENV)/installed ## the whole test suite, doctests included
	$(BIN)/python -m pytest

check: $(VENV)/installed ## lint, format, types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# --full on a script gives the practice sizes, see benchmarks/README.md
BENCHMARKS := fusion inference positioning_speed prior_estimation training_step throughput pool imports

bench: $(VENV)/installed ## the benchmarks: ratios to the obvious alternatives, seven minutes
	set -e; for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py; done

clean: ## remove what the targets made
	rm -rf $(VENV) runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
