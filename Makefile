# Everything starts here; `make` alone says what there is. Each target sets up what it needs.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
DEMO ?= runs/demo
# a virtual environment of the oldest releases that setup.cfg admits
LOWEST ?= .venv-lowest
LOWEST_TORCH ?= $(TORCH)
TESTS ?=
# processes of `make test`; the tests of a file stay in one of them
WORKERS ?= 2
PYTEST = -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# all but the project's own tests
INNER = tests --ignore=tests/project --ignore=tests/benchmarks

.DEFAULT_GOAL := help
.PHONY: help demo test quick test-lowest check docs bench gpu build clean

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# torch goes first and by itself, so that a CPU build that lies on the machine is taken
$(VENV)/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: $(VENV)/installed ## phantom, prior, training, pseudo-labels, test: table and pictures
	$(BIN)/python -m stipple_monai demo --out $(DEMO)

# workers, and what they start, read what was compiled before
test quick: export PYTHONDONTWRITEBYTECODE =

test: $(VENV)/installed ## the whole test suite, doctests included
	$(BIN)/python $(PYTEST) $(TESTS)

quick: $(VENV)/installed ## tests of less than a tenth of a second each, without trainings and real scans
	$(BIN)/python $(PYTEST) -m "not slow and not training and not real" $(or $(TESTS),$(INNER))

test-lowest: $(VENV)/installed ## the same with the oldest dependencies that setup.cfg admits
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet $(LOWEST_TORCH)
	$(BIN)/python tests/helpers/lowest.py > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet --editable '.[test]' -c $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python $(PYTEST) $(TESTS)

check: $(VENV)/installed ## lint, format, imports between packages, types, YAML
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy
	$(BIN)/yamllint --strict .

docs: $(VENV)/installed ## the documentation, in docs/_build/html; stops at a broken reference
	$(BIN)/python -m sphinx -W --keep-going -n -q -b html docs docs/_build/html

# --full on a script gives the practice sizes, see benchmarks/README.md
BENCHMARKS := fusion inference positioning_speed prior_estimation training_step throughput pool imports bfloat16

bench: $(VENV)/installed ## the benchmarks: ratios to the obvious alternatives, seven minutes
	set -e; for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py; done

MINUTES ?= 10
GPU_OUT ?= runs/gpu
GPU_OPTIONS ?=

gpu: $(VENV)/installed ## all that only a GPU can tell: tests, benchmarks, scores; ten minutes
	$(BIN)/python benchmarks/gpu.py --minutes $(MINUTES) --out $(GPU_OUT) $(GPU_OPTIONS)

build: $(VENV)/installed ## wheel and sdist, in dist
	$(BIN)/python -m build --no-isolation

clean: ## remove what the targets made
	rm -rf $(VENV) $(LOWEST) runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	rm -rf docs/_build docs/_outside .coverage*
