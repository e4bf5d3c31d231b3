# `make` lists what there is. Everything runs in the environment that is active.
PYTHON ?= python
PEER ?= ray

.PHONY: help test lint check perf compare nightly demo map golden

help:
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/ -/'

test: ## run the tests
	$(PYTHON) -m pytest

lint: ## run ruff and mypy
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

check: ## what CI runs, in a fresh environment
	.ci/run

perf: ## run the benchmarks of meshray alone
	$(PYTHON) -m pytest perf --benchmark-only

compare: ## run the rows on meshray and PEER alternately (PEER=ray|dask|pool)
	$(PYTHON) -m perf.compare --peer $(PEER)

nightly: ## the long checks: a million tasks, a spinning driver, a million seeds, all rows against PEER
	$(PYTHON) -m perf.flat_memory
	$(PYTHON) -m perf.spinning
	$(PYTHON) -m tests.sim.gcs_seeds --seeds 1000000
	$(PYTHON) -m tests.chaos.crash_points
	$(PYTHON) -m tests.chaos.crash_points --durability relaxed
	$(PYTHON) -m perf.compare --peer $(PEER)

demo: ## train CartPole on a two-node local cluster
	meshray demo

map: ## write the map of modules in docs/ARCHITECTURE.md
	$(PYTHON) docs/module_map.py

golden: ## write the golden bytes of the messages, after a change of the wire that is meant
	$(PYTHON) tests/unit/test_golden.py --regen
