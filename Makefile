# Every habit has one command. The environment lies in .venv and is made when first needed.
PYTHON ?= python3
BIN := .venv/bin
CONSTRAINTS := constraints.txt
# Processes that test, one more than cores, since tests of clusters wait; each has one thread. They
# start hundreds, which share their bytecode.
WORKERS ?= $(shell $(PYTHON) -c "import os; print(len(os.sched_getaffinity(0)) + 1)" || echo auto)
# Holds the datasets.
DATA ?= data

.PHONY: help install quickstart laptop measured test lint typecheck unit test-misuse test-slow test-faults docs notebooks \
	leaderboard bench clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

install: .venv/installed  ## make .venv with the package and what it needs

quickstart: .venv/installed  ## sweep seven algorithms on embedded digits: tables, a report
	$(BIN)/domainbed quickstart

laptop: .venv/installed-laptop  ## all algorithms on PACS through frozen features, an hour
	$(BIN)/domainbed data features PACS --data_dir $(DATA)
	$(BIN)/domainbed sweep launch configs/laptop.yaml --data_dir $(DATA) --skip_confirmation
	$(BIN)/domainbed collect results/laptop

measured: .venv/installed-laptop  ## the sweeps behind docs/averaging.md, and their tables
	$(BIN)/domainbed sweep launch configs/averages_pacs.yaml --data_dir $(DATA) --skip_confirmation
	for method in greedy-soup diwa-uniform ensemble; do $(BIN)/domainbed model average \
		results/averages_pacs --method $$method --data_dir $(DATA) || exit 1; done
	$(BIN)/domainbed sweep launch configs/averages_colored_mnist.yaml --data_dir $(DATA) \
		--skip_confirmation
	$(BIN)/python docs/measured_tables.py docs/averaging.md

test: lint typecheck unit docs  ## lint, types, tests, docs

lint: .venv/installed-dev  ## ruff, and which package may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

typecheck: .venv/installed-dev  ## mypy on the package
	$(BIN)/mypy

unit: .venv/installed-dev  ## the tests, in parallel
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-misuse: .venv/installed-dev  ## wrong inputs of all kinds, each in one line
	$(BIN)/python -m pytest tests/misuse -m '' -n $(WORKERS) --dist worksteal

test-slow: .venv/installed-dev  ## the long checks
	$(BIN)/python -m pytest -m slow

test-faults: .venv/installed-dev  ## damage files, mix runs and data, kill sweeps: no number may change
	$(BIN)/python tests/faults/damage.py
	$(BIN)/python tests/faults/mixtures.py
	$(BIN)/python tests/faults/campaign.py

docs: .venv/installed-dev  ## the documentation as a site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

notebooks: .venv/installed  ## execute the notebooks of the tutorials; they keep their outputs
	$(BIN)/pip install --quiet nbconvert ipykernel
	folder=$$(mktemp -d) && cp docs/tutorials/*.ipynb $$folder && \
		PYTHONWARNINGS=ignore:IProgress $(BIN)/jupyter nbconvert --to notebook --execute --inplace \
		--ExecutePreprocessor.record_timing=False --ExecutePreprocessor.coalesce_streams=True \
		$$folder/*.ipynb && cp $$folder/*.ipynb docs/tutorials

RANKED := $(patsubst results/baselines/%/config.yaml,baseline:%,$(wildcard results/baselines/*/config.yaml)) \
	$(wildcard results/submissions/*/*.parquet)

leaderboard: .venv/installed  ## what is released and submitted, ranked, in site/board
	$(if $(strip $(RANKED)),$(BIN)/domainbed leaderboard $(RANKED) -o site/board,@echo "No baseline is released yet")

bench: .venv/installed-dev  ## speed and memory beside a plain baseline, in results/speed.md
	$(BIN)/python benchmarks/speed.py --data_dir $(DATA)

clean:  ## remove the environment and caches, but no data and no results
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache \
		.import_linter_cache site

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: setup.py $(CONSTRAINTS) | .venv/bin/python
	$(BIN)/pip install -c $(CONSTRAINTS) -e '.[hub]'
	@touch $@

.venv/installed-laptop: .venv/installed
	$(BIN)/pip install -c $(CONSTRAINTS) -e '.[laptop]'
	@touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/pip install -c $(CONSTRAINTS) -e '.[dev]'
	@touch $@
