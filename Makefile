# Needs make and Python 3.10 or newer; everything else is installed into .venv, once.
.DEFAULT_GOAL := install
.DELETE_ON_ERROR:
.PHONY: help install demo test test-quick lint site versions wheel clean distclean

VENV ?= .venv
OUT ?= demo-out
JOBS ?= 2
STAMP := $(VENV)/.vidaccel-installed
BIN := $(VENV)/bin
# Apart, as diffusers and transformers load it with every import where they find it, and say what of it they could not load.
TORCHAO := $(VENV)/torchao
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install -q -c constraints.txt
# One thread per test process: the processes already fill the cores.
TEST_ENV := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## create .venv and install vidaccel into it, editable

demo: $(STAMP) ## run a small video pipeline dense and fast, and write a report into demo-out (or OUT=...)
	$(BIN)/vidaccel demo --out "$(OUT)"

test: lint ## lint, type-check and run all tests (JOBS=2 processes)
	$(TEST_ENV) $(BIN)/python -m pytest -q -n $(JOBS)
	$(TEST_ENV) PYTHONPATH=$(TORCHAO) $(BIN)/python -m pytest -q -m torchao

support: $(STAMP) ## run the tests of every transformer class, and record what they prove
	$(TEST_ENV) PYTHONPATH=$(TORCHAO) $(BIN)/python -m tests.pipelines.support

test-quick: $(STAMP) ## only the tests that are not marked slow
	$(TEST_ENV) $(BIN)/python -m pytest -q -n $(JOBS) -m "not slow"

lint: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

site: $(STAMP) ## build the docs site into build/site; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/site
	@echo "open build/site/index.html"

versions: $(STAMP) ## the tests of bit-identical steps on every supported diffusers version
	$(BIN)/nox -s versions

wheel: $(STAMP) ## build the wheel into dist
	$(BIN)/python -m pip wheel -q --no-deps -w dist .

clean: ## remove what runs and builds left behind
	rm -rf build dist demo-out .nox .hypothesis .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -not -path "./$(VENV)/*" -exec rm -rf {} +

distclean: clean ## clean, and remove .venv
	rm -rf $(VENV)

# torch comes first, alone: a later requirement on "torch" then finds the pinned one and never takes a newer, larger build.
$(STAMP): pyproject.toml constraints.txt miniatures/pyproject.toml
	@set -e; found=; old=; bare=; \
	for candidate in $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python3.10); do \
	  $$candidate -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 15))' 2>/dev/null \
	    || { old="$$old $$candidate"; continue; }; \
	  $$candidate -c 'import ensurepip, venv' 2>/dev/null || { bare=$$candidate; continue; }; \
	  found=$$candidate; break; \
	done; \
	if [ -z "$$found" ] && [ -n "$$bare" ]; then \
	  echo "$$bare has no venv and ensurepip modules; install them (Debian and Ubuntu: apt-get install python3-venv)" >&2; exit 1; \
	elif [ -z "$$found" ]; then \
	  echo "vidaccel needs Python 3.10 to 3.14; none of these is one:$$old (name yours with PYTHON=...)" >&2; exit 1; \
	fi; \
	echo "creating $(VENV) with $$found"; $$found -m venv $(VENV)
	@echo "installing PyTorch into $(VENV) (once; the CUDA build is several gigabytes)"
	@$(PIP) torch
	@echo "installing vidaccel and its other dependencies into $(VENV)"
	@$(PIP) -e ./miniatures -e '.[demo,dev]'
	@$(PIP) --no-deps --upgrade --target $(TORCHAO) torchao
	@touch $@
	@echo "installed; next: make demo, make test (make help lists the rest)"
