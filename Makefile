# TheWorld: every command of the project. `make help` lists them; `make run` and `make test` set up by themselves.
VENV ?= .venv
MODEL ?= nano
GEMMA ?= google/gemma-3-4b-it
CONFIG ?= configs/default.json
RUNS ?= runs/blink
REPORT ?= report
SMOKE := checkpoints/smoke-test
DATA_ARG = $(if $(DATA),--data $(DATA))
SHELL := /bin/bash
.DEFAULT_GOAL := help

# `make test PYTHON=python3` uses an environment of your own and sets nothing up.
ifdef PYTHON
CORE :=
DEV :=
else
PYTHON := $(VENV)/bin/python
CORE := $(VENV)/.setup-core
DEV := $(VENV)/.setup-dev
endif

$(VENV)/.setup-core: requirements.lock pyproject.toml
	@VENV=$(VENV) PYTHON= bash scripts/setup.sh --skip-models --skip-dev

$(VENV)/.setup-dev: requirements.lock requirements-dev.lock pyproject.toml
	@VENV=$(VENV) PYTHON= bash scripts/setup.sh --skip-models

.PHONY: help setup lock format check typecheck run train-simple train-hf smoke-test eval-blink eval-gemma compare-results \
        test test-slow test-gpu clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F'\t' '{printf "  make %-16s %s\n", $$1, $$2}'

setup: ## Make .venv, install everything, look for a Hugging Face token, cache the base models if there is one
	@VENV=$(VENV) bash scripts/setup.sh

lock: $(DEV) ## Write requirements.lock and requirements-dev.lock anew from pyproject.toml
	@bash scripts/lock.sh

format: $(DEV) ## Format the code (black, 120 columns) and sort the imports
	@$(PYTHON) -m ruff check --fix --quiet . || true
	@$(PYTHON) -m black --quiet .

check: $(DEV) ## Formatting, lint and types, changing nothing
	@$(PYTHON) -m black --check --quiet . || { echo "black would change these files (make format does):"; $(PYTHON) -m black --check . 2>&1 | grep 'would reformat'; exit 1; }
	@$(PYTHON) -m ruff check --quiet .
	@$(PYTHON) -m mypy

typecheck: $(DEV) ## Types alone
	@$(PYTHON) -m mypy

run: $(CORE) ## Answer questions about six shipped scenes with and without an imagined future (MODEL=nano)
	@$(PYTHON) examples/inference.py --model $(MODEL)

train-simple: $(CORE) ## One forward and backward pass, step by step
	@$(PYTHON) examples/simple_training.py

train-hf: $(CORE) ## Train as CONFIG says, with HF Trainer (CONFIG=configs/default.json, ARGS="--resume_from last" goes on)
	@$(PYTHON) scripts/train_hf.py --config $(CONFIG) $(ARGS)

smoke-test: $(CORE) ## Two samples from model to checkpoint, offline, anew each time (ARGS=)
	@rm -rf $(SMOKE)
	@$(PYTHON) scripts/train_hf.py --config configs/smoke_test.json --output_dir $(SMOKE) $(ARGS)

eval-blink: $(CORE) ## MODEL on BLINK val, with and without its imagined future, into runs/blink (DATA=, ARGS=)
	@$(PYTHON) scripts/evaluate_blink.py --config configs/eval_blink.json --model $(MODEL) $(DATA_ARG) $(ARGS)

eval-gemma: $(CORE) ## Plain Gemma on BLINK val, into runs/blink (GEMMA=, DATA=, ARGS=)
	@$(PYTHON) scripts/evaluate_blink.py --model $(GEMMA) --arms gemma $(DATA_ARG) $(ARGS)

compare-results: $(CORE) ## Every run in runs/blink against the others, into report/ (RUNS=, REPORT=)
	@$(PYTHON) scripts/compare_results.py $(RUNS) -o $(REPORT)

test: $(DEV) ## The tests: tiny models, no network, no GPU
	@HF_HUB_OFFLINE=1 $(PYTHON) -m pytest -n 2

test-slow: $(DEV) ## The tests that take longer
	@HF_HUB_OFFLINE=1 $(PYTHON) -m pytest -m "slow and not gpu"

test-gpu: $(DEV) ## The tests that need an accelerator
	@HF_HUB_OFFLINE=1 $(PYTHON) -m pytest -m gpu

clean: ## Remove caches and temporary files (keeps .venv, checkpoints/ and logs/)
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
