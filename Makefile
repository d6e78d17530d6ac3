# Each target is one command on a fresh machine: it makes .venv with everything installed if that is missing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TOOLS := $(VENV)/.tools
COMPILED := $(VENV)/.compiled
PLUGINS := $(sort $(dir $(wildcard plugins/*/pyproject.toml)))
WORKERS ?= 2
# One thread a worker; and glibc keeps what is freed for the next tensor, where by itself it gives each
# back to the system and gets it again, zeroed: half of the system's time.
TESTS := OMP_NUM_THREADS=1 MALLOC_TRIM_THRESHOLD_=536870912 MALLOC_MMAP_THRESHOLD_=33554432
SEED ?= 0
OLDEST_PYTHON ?= $(or $(shell python3.10 -c "import sys; print(sys.executable)" 2>/dev/null),$(PYTHON))
LOWEST := .venv-lowest
SITE := .venv-docs

.PHONY: demo test test-lowest test-gpu test-interop test-runtimes test-all sweep figures bench bench-builds bench-blocks docs gallery site lint format wheels release-check clean

demo: $(READY)  ## patch, prove, fine-tune, save and load a real pretrained network
	$(BIN)/python examples/demo.py

test: $(READY)  ## what every change must pass
	$(MAKE) --no-print-directory -j 2 lint $(COMPILED)
	$(TESTS) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not sweep and not interop and not gpu"

test-gpu: $(READY)  ## what needs a CUDA device; a bench beside: tests/bench/gpu_training.py
	$(BIN)/python -m pytest -q -m gpu tests/gpu

test-interop: $(TOOLS)  ## hybrids in the hands of other tools: peft, accelerate, lightning, ...
	$(TESTS) $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m interop

test-runtimes: .venv-executorch/.ready .venv-litert/.ready  ## exports in ExecuTorch and LiteRT, of 265 and 761 MB, each in its own environment
	for each in executorch litert; do OMP_NUM_THREADS=1 .venv-$$each/bin/python -m pytest -q plugins/tvc-export/tests/test_runtimes.py -k $$each || exit 1; done

test-lowest: $(LOWEST)/.ready  ## a sample of the tests with the oldest versions that the metadata promise
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -q -n $(WORKERS) --dist worksteal -m "not sweep and not interop and not packaging" tests/core tests/zoo plugins/tvc-attention

test-all: $(READY) $(TOOLS) lint  ## also the sweeps over all backbones, and other tools
	$(TESTS) $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadgroup

sweep: $(READY)  ## the part of test-all that docs/reference/sweep.md is written from, and exports of all classifiers
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadgroup -m sweep --junit-xml=$(VENV)/sweep.xml tests/plugins/test_torchvision_families.py tests/plugins/test_every_path.py plugins/tvc-export/tests/test_every_backbone.py
	$(BIN)/python tests/sweep_page.py $(VENV)/sweep.xml

figures: $(READY)  ## the reliability of files, caches and killed runs, counted: make figures SEED=1
	SEED=$(SEED) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) -m figure tests/core plugins/tvc-train/tests

bench: $(READY)  ## figures as ratios, side by side in one run
	$(BIN)/python tests/bench/bench.py
	OMP_NUM_THREADS=1 $(BIN)/python tests/bench/builds.py
	OMP_NUM_THREADS=1 $(BIN)/python tests/bench/training.py
	$(BIN)/python tests/bench/blocks.py --page docs/explanation/block-speed.md

bench-builds: $(READY)  ## builds against torchvision's, into docs/explanation/build-speed.md; goes on where it was stopped
	OMP_NUM_THREADS=1 $(BIN)/python tests/bench/builds.py

bench-blocks: $(READY)  ## what each block costs and brings, into docs/how-to/choosing-a-block.md; goes on where it was stopped
	$(BIN)/python -m pip install --quiet --group bench
	OMP_NUM_THREADS=1 nice $(BIN)/python tests/bench/choosing.py

docs: $(READY)  ## write the reference from the code
	$(BIN)/python docs/generate.py

gallery: $(READY)  ## page, map and bench row of each recipe in examples/, into build/gallery
	$(BIN)/python examples/gallery.py --out build/gallery $(if $(PHOTO),--photo $(PHOTO))

site: $(SITE)/.ready  ## build docs/ for reading offline, into build/site
	$(SITE)/bin/python -m sphinx -q -W --keep-going -b html docs build/site

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheels: $(READY)  ## build all distributions into dist/, an sdist and a wheel each
	rm -rf dist
	for folder in . $(PLUGINS); do $(BIN)/python -m build --no-isolation --outdir dist $$folder || exit 1; done

release-check: wheels  ## what must pass before an upload
	$(BIN)/python -m twine check --strict dist/*
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m packaging

clean:
	rm -rf $(VENV) $(LOWEST) $(SITE) .venv-executorch .venv-litert dist build/site build/gallery

$(READY): pyproject.toml tests/install.py $(wildcard plugins/*/pyproject.toml) plugins/tvc-inspect/hatch_build.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1" uv || $(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python tests/install.py --quiet --group dev
	$(BIN)/python tests/install.py --quiet --no-build-isolation --editable . $(addprefix --editable ,$(PLUGINS))
	$(BIN)/python -m compileall -q tvc_core $(PLUGINS)
	touch $(READY)

# The byte code, beside mypy, which leaves one core idle. Where Python may not write it, each of the
# processes that tests start would compile again what is missing.
$(COMPILED): $(READY)
	-$(BIN)/python -m compileall -qq $(VENV)/lib/python3*/site-packages
	touch $@

# Python 3.10 if there is one, and of everything that we require the oldest version
$(LOWEST)/.ready: tests/lowest.py pyproject.toml $(wildcard plugins/*/pyproject.toml)
	$(OLDEST_PYTHON) -m venv $(LOWEST)
	$(OLDEST_PYTHON) tests/lowest.py > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(LOWEST)/bin/python -m pip install --quiet --group lowest --constraint $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet --constraint $(LOWEST)/constraints.txt --editable . $(addprefix --editable ,$(PLUGINS))
	touch $@

# each with the torch that its runtime asks for
.venv-%/.ready: pyproject.toml plugins/tvc-export/pyproject.toml
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	.venv-$*/bin/python -m pip install --quiet --group lowest --editable . --editable plugins/tvc-cli --editable plugins/tvc-attention --editable 'plugins/tvc-efficientnet[lite]' --editable 'plugins/tvc-export[$*]'
	touch $@

# what writes the site needs nothing of tvc, and tvc nothing of it
$(SITE)/.ready: pyproject.toml
	$(PYTHON) -m venv $(SITE)
	$(SITE)/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(SITE)/bin/python -m pip install --quiet --group docs
	touch $@

# torch and what else is there stays as it is
$(TOOLS): $(READY)
	$(BIN)/python -m pip freeze --exclude-editable > $(VENV)/constraints.txt
	$(BIN)/python -m pip install --quiet --group interop --constraint $(VENV)/constraints.txt
	touch $(TOOLS)
