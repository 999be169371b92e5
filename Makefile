# One command each on a machine with Python ≥ 3.11 and make; `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup setup-all demo test test-slow test-breaks bench docs check format lock dist smoke clean-store

PYTHON := .venv/bin/python
# Of a new environment, and of the smoke test: `make test PYTHON_VERSION=3.13`.
PYTHON_VERSION ?= >=3.11
export PYTHON_VERSION
UV := $(shell uv --version >/dev/null 2>&1 && echo uv || echo .uv/bin/uv)
CHECKPOINTS := outputs/checkpoints/clip_mini
MINI_TASKS := $(shell sed -n 's|.*/task@tasks\.\([a-z0-9_]*\):.*|\1|p' conf/suite/mini.yaml)
comma := ,
# Of the extras, those that the demo and the default tests need.
EXTRAS := data hf xlsx sweep joblib dev
LOCK := --universal --python-version 3.11 --generate-hashes --no-emit-index-url --quiet
BENCH :=
BREAKS :=
# Where Python may not keep bytecode, every command would compile PyTorch and Lightning anew: 20 s each.
BYTECODE := $(if $(PYTHONDONTWRITEBYTECODE),--compile-bytecode)
empty :=
space := $(empty) $(empty)

help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-12s  %s\n", $$1, $$2 }' Makefile

setup: .venv/ready  ## make the environment in .venv

.venv/ready: requirements.lock pyproject.toml
	@$(UV) --version >/dev/null 2>&1 || python3 -m pip install --quiet --target .uv uv
	@test -x $(PYTHON) || $(UV) venv --quiet --python '$(PYTHON_VERSION)' .venv
	$(UV) pip sync --quiet $(BYTECODE) --python $(PYTHON) requirements.lock
	$(UV) pip install --quiet --python $(PYTHON) --no-deps --no-build-isolation --editable .
	@touch $@

setup-all: setup  ## add launchers, loggers, dashboards and what only slow tests need
	$(UV) pip sync --quiet $(BYTECODE) --python $(PYTHON) requirements-all.lock
	$(UV) pip install --quiet --python $(PYTHON) --no-deps --no-build-isolation --editable .

demo: setup  ## images to a mergeability report: ten tasks, six merge methods, no network, about ten minutes
	@test -f $(CHECKPOINTS)/base/card.json || $(PYTHON) train.py experiment=pretrain_mini logger=csv
	@for task in $(MINI_TASKS); do test -f $(CHECKPOINTS)/none-0/seed-0/$$task/card.json || missing=1; done; \
	if [ -n "$${missing:-}" ]; then \
	  $(PYTHON) train.py -m model=clip_mini task=$(subst $(space),$(comma),$(MINI_TASKS)) logger=csv; \
	fi
	@$(PYTHON) analyze.py suite=mini model=clip_mini merge=paper logger=csv hydra.run.dir=outputs/demo

# One process per core with one thread each: two threads in each of two processes wait for each other. Whole files, which
# share fixtures, in the order of tests/conftest.py: long ones first, so that no process is left with one at the end.
# Compiled tests are kept, even where Python is told to keep none: each worker and each child would compile them anew.
test: setup  ## the test suite, in minutes
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(PYTHON) -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-slow: setup-all  ## real sizes and whole trainings
	$(PYTHON) -m pytest -m slow

test-breaks: setup  ## every recorded break must turn a test red
	$(PYTHON) tests/breaks/run.py $(BREAKS)

bench: setup  ## time and memory of the pair metrics, about 20 minutes (BENCH='--sizes tiny': one minute)
	$(PYTHON) -m benchmarks $(BENCH)

# A folder of packages next to .venv, which stays as the lock has it.
.docs/ready: .venv/ready pyproject.toml
	$(UV) pip install --quiet --python $(PYTHON) --target .docs -c requirements-all.lock \
	  $$($(PYTHON) -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['docs'])")
	@touch $@

docs: .docs/ready  ## the documentation site, in site/; broken links and missing docstrings are errors
	PYTHONPATH=.docs $(PYTHON) -m mkdocs build --strict

check: setup  ## format, lint, types, layers
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/lint-imports
	.venv/bin/pyright

format: setup  ## format and fix what can be fixed
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

lock: setup  ## pin every dependency anew
	$(UV) pip compile $(LOCK) --upgrade --all-extras --group witnesses pyproject.toml -o requirements-all.lock
	$(UV) pip compile $(LOCK) --upgrade -c requirements-all.lock $(addprefix --extra ,$(EXTRAS)) pyproject.toml \
	  -o requirements.lock

dist:  ## build wheel and source distribution into dist/ and check what they contain
	@$(UV) --version >/dev/null 2>&1 || python3 -m pip install --quiet --target .uv uv
	rm -rf dist
	$(UV) build --quiet --python '$(PYTHON_VERSION)'
	$(UV) run --quiet --no-project --python '$(PYTHON_VERSION)' python .ci/check_dist.py
	$(UV) tool run --quiet 'twine>=6.1' check --strict dist/*

smoke: dist  ## install the wheel into a fresh environment and run it there
	.ci/smoke

clean-store:  ## forget what was computed; trained models stay
	rm -rf outputs/store
