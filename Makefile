# Two commands from a fresh clone, with nothing but python3 >= 3.10 (with venv) and make:  make demo   make test
.PHONY: help setup demo test test-slow test-versions docs site lint bench dist audit sbom clean
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
# Exact versions that were proved, `make CONSTRAINTS= ...` for the newest ones; some of them need Python 3.11.
CONSTRAINTS ?= $(shell $(PYTHON) -c 'import sys; print("constraints.txt" if sys.version_info >= (3, 11) else "")' 2>/dev/null)
EXTRAS ?= dev,tensorboard,mlflow,wandb,guard,postgres,serve,onnx,parquet,sign,release,docs
N ?= 2
ARGS ?=
BENCH ?= benchmarks/speed.py

BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(N) --durations=15

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## create .venv and install (once; again when pyproject.toml or constraints.txt change)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "robustcli needs Python >= 3.10: make PYTHON=/path/to/python3"; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) || { echo "this Python cannot make virtual environments: install its venv module (Debian, Ubuntu: python3-venv)"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e ".[$(EXTRAS)]"
	@$(BIN)/python -c 'import torch, torchvision' 2>$(VENV)/import.log || { tail -n 1 $(VENV)/import.log; \
	  echo "torch and torchvision do not match; the fix: $(BIN)/python -m pip install --force-reinstall $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) torch torchvision"; exit 1; }
	@touch $@

demo: $(READY) ## the whole story on embedded data, in about a minute of work
	$(BIN)/robustcli demo

# No test of the suite takes a minute: one that hangs ends, and says where it stood.
test: $(READY) ## the whole suite; ARGS="-k pgd" for a part of it
	$(PYTEST) --timeout=300 $(ARGS)

test-slow: $(READY) ## the full counts that the suite samples
	$(PYTEST) -m slow $(ARGS)

# What each set asks of the resolver: the lower bounds of pyproject.toml, a torch that images ship, nothing at all.
SETS ?= oldest torch-2.11 newest
ASKS_oldest := --resolution lowest-direct
ASKS_torch-2.11 := torch==2.11.0
ASKS_newest :=

test-versions: $(READY) ## the suite on the oldest promised and the newest versions; SETS="oldest" for one of them
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@failed=; for set in $(SETS); do $(MAKE) --no-print-directory version-$$set || failed="$$failed $$set"; done; \
	  [ -z "$$failed" ] || { echo "test-versions failed:$$failed"; exit 1; }

version-%:
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(VENV)/versions/$*
	$(BIN)/uv pip install --quiet --python $(VENV)/versions/$* $(ASKS_$*) -e ".[dev,guard,serve]"
	$(BIN)/uv pip freeze --quiet --python $(VENV)/versions/$* > $(VENV)/versions/$*.txt
	OMP_NUM_THREADS=1 $(VENV)/versions/$*/bin/python -m pytest -n $(N) -p no:cacheprovider $(ARGS)

docs: $(READY) ## tables, reference pages and docs/cli.md, from what is registered and the commands
	$(BIN)/python docs/tables.py
	$(BIN)/python docs/reference.py

site: $(READY) ## the documentation as web pages in build/site; a warning fails it
	$(BIN)/python -m mkdocs build --strict

lint: $(READY) ## ruff, mypy, and the shape of the code beside others'
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python benchmarks/shape.py

bench: $(READY) ## speed beside torchattacks, as ratios from one interleaved run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e ".[bench]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps torchattacks
	$(BIN)/python $(BENCH) $(ARGS)

dist: $(READY) ## sdist and wheel into dist/
	rm -rf dist
	$(BIN)/python -m build --no-isolation

audit: $(READY) ## known vulnerabilities of the versions in constraints.txt; asks PyPI
	$(BIN)/pip-audit --strict --no-deps --disable-pip -r constraints.txt

sbom: $(READY) ## what .venv is made of, as CycloneDX, into dist/
	mkdir -p dist
	$(BIN)/python -m cyclonedx_py environment --pyproject pyproject.toml --output-reproducible -o dist/sbom.cdx.json $(BIN)/python

clean: ## remove .venv and caches; runs/ stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	find robustcli tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
