# What a person does with this repository. `make` alone lists it.

VENV   ?= .venv
PYTHON ?=
DEVICE ?=
ARGS   ?=

BIN := $(VENV)/bin

# One intra-op thread per rank: several ranks share the machine's cores.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help env system-deps quickstart check test test-instruments doctor gpu-proof lint format docs clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  VENV=$(VENV)  PYTHON=$(or $(PYTHON),(python3.11 or python3.12))  DEVICE=$(or $(DEVICE),(cuda with a GPU whose driver is new enough, else cpu))  ARGS=$(or $(ARGS),(none: key=value ...))"

env:  ## make the Python environment in VENV, or do nothing if it is there
	@PYTHON=$(PYTHON) DEVICE=$(DEVICE) bash tools/setup_env.sh $(VENV)

# resume=auto continues an unfinished run of the same configuration, and starts one otherwise.
quickstart: env  ## train the small example on this machine (ARGS: key=value overrides)
	$(BIN)/scope-megatron train configs/quickstart.yaml resume=auto $(ARGS)

check: lint  ## lint, types and the unit tests that are quick: under two minutes on two cores
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow" tests/unit $(ARGS)

test: env  ## run the tests (ARGS: more of pytest's arguments)
	@tools/test.sh $(BIN)/python $(ARGS)

test-instruments: env  ## the tests of planner, view page, benchmarks and proofs, which `test` leaves out
	@tools/test.sh $(BIN)/python -m instrument $(ARGS)

system-deps:  ## install with apt what some tests need: bubblewrap, Chromium, Slurm, rsync
	@tools/system_deps.sh

doctor: env  ## say what of this machine works, what is missing and how to get it
	@$(BIN)/scope-megatron doctor

gpu-proof: env  ## show on this machine's GPU what only a GPU can show (ARGS: --only PART, --list)
	$(BIN)/python -m tools.gpu_proof $(ARGS)

lint: env  ## ruff's checks, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: env  ## put the code into ruff's format, fix what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: env  ## write docs/configuration.md from the schema, build the site into build/site, strictly
	$(BIN)/python -m tools.config_reference
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "build/site/index.html"

clean:  ## remove caches and build results; keeps VENV and runs/
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -path ./$(VENV) -prune -o -path ./.git -prune -o -name __pycache__ -type d -print \
		| xargs -r rm -rf
