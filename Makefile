# `make` lists the targets. The first one you run builds .venv (needs the network once);
# after that an unchanged checkout starts at once.
#
#   make train ARGS='--max-steps 100'     further arguments of the training command
#   make test PYTEST_ARGS='tests/test_packaging.py'
#   make bench BENCH=benchmarks/bench_kernels.py
#   make PYTHON=python3.12 train          another interpreter (only read when .venv is built)

PYTHON ?= python3
VENV := .venv
ARGS ?=
# Two workers with one thread each: many tests start PyTorch processes of their own.
PYTEST_ARGS ?= -n 2 --dist loadfile

BENCH ?= benchmarks

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install train test bench gate lint format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-9s %s\n", $$1, $$2}' Makefile

install: $(STAMP) ## build .venv with fastvae (editable) and the development tools

$(STAMP): pyproject.toml setup.py constraints.txt
	@command -v $(PYTHON) > /dev/null || { echo "make: no $(PYTHON) here;" \
		"install Python 3.10 or newer, or say make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "make: fastvae needs Python 3.10 or newer; $(PYTHON) is" \
		"$$($(PYTHON) --version 2>&1). Say make PYTHON=python3.12, for example" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2> /dev/null || { \
		echo "make: $(PYTHON) cannot build virtual environments." \
		"On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "installing fastvae and its dependencies into $(VENV) (minutes the first time)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[dev]'
	@touch $@

train: $(STAMP) ## train the digits preset and say where the results are
	$(BIN)/torchrun --standalone --nproc_per_node=1 -m fastvae.train digits $(ARGS)

test: $(STAMP) ## run the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

bench: $(STAMP) ## measure speed side by side (CPU time; on a GPU the tables: CUDA events)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(BENCH) --benchmark-only \
		--benchmark-timer=$$($(BIN)/python -c 'import torch; \
		print("time.perf_counter" if torch.cuda.is_available() else "time.process_time")') \
		--benchmark-columns=min,median,max,rounds

gate: $(STAMP) ## compile every Triton kernel for every GPU kind, without a GPU, and check the code
	$(BIN)/python -m benchmarks.compile_gate --jobs 2

lint: $(STAMP) ## check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p fastvae

format: $(STAMP) ## sort imports and format
	$(BIN)/ruff check --select I --fix .
	$(BIN)/ruff format .

clean: ## remove caches and build outputs; keeps .venv and runs/
	rm -rf build dist fastvae.egg-info .mypy_cache .pytest_cache .ruff_cache .benchmarks
	find $(wildcard fastvae kernels data_tools tests benchmarks) -type d -name __pycache__ -prune \
		-exec rm -rf {} +
