# Everything is set up in .venv by these commands themselves: make demo, make test.
SHELL := /bin/bash
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHONWARNINGS ?= default
PLUGINS := $(patsubst plugins/%/pyproject.toml,%,$(wildcard plugins/*/pyproject.toml))
READY := .venv/.ready

.PHONY: demo demo-long demo-photos test test-slow lint bench docs clean

$(READY): pyproject.toml $(wildcard plugins/*/pyproject.toml)
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --upgrade pip
	.venv/bin/python -m pip install --quiet --editable ".[dev]" $(foreach plugin,$(PLUGINS),--editable plugins/$(plugin))
	@touch $(READY)

# The road, each step as the command that it is. Run again, it does only what is not done.
demo: $(READY)
	zoo list
	zoo data make scenes runs/demo/data --train 4000 --test 400 --seed 0
	zoo data derive runs/demo/data
	zoo tokenizer train --all --data runs/demo/data
	zoo tokenize runs/demo/data --out runs/demo/tokens
	zoo backbone train --tokens runs/demo/tokens --out runs/demo/backbone --preset nano --config configs/demo.toml
	zoo backbone eval runs/demo/backbone --config configs/demo.toml
	zoo report runs/demo/backbone

test: $(READY)
	ruff check .
	ruff format --check .
	mypy
	pytest -m "not slow"

test-slow: $(READY)
	pytest -m slow

lint: $(READY)
	ruff check --fix .
	ruff format .
	mypy

clean:
	rm -rf .venv runs .mypy_cache .ruff_cache .pytest_cache
