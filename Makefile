# Everything runs in .venv, which is made from nothing but Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup demo test test-all lint format backbone clean

help: ## List what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: $(STAMP) ## Make the environment

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --constraint constraints.txt --group dev --editable '.[all]'
	@touch $@

demo: setup ## Adapt the shipped backbone to handwritten digits, ten labels a class
	$(BIN)/lightning-peft -m experiment=demo

# one thread a process: torch's threads of two processes would only wait for each other
TEST := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses=2 --dist=loadfile

test: lint ## Run every check
	$(TEST) -m "not slow"

test-all: lint ## Run every check, the slow tests included
	$(TEST)

lint: setup ## Check style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

backbone: setup ## Pretrain the shipped backbone again
	$(BIN)/python -m lightning_peft.backbones.pretrain --out lightning_peft/backbones

clean: ## Remove what was made, the environment included
	rm -rf $(VENV) build dist outputs multirun .pytest_cache .mypy_cache .ruff_cache
