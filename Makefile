.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
SOURCES := .
BENCH ?= parts

.PHONY: help demo test test-min check fix bench clean

help: ## Show this help
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

# One environment per set of constraints. torch comes first, by its exact version.
$(VENV)/.installed: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt torch
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

.venv-min/.installed: setup.py constraints-min.txt
	$(PYTHON) -m venv .venv-min
	.venv-min/bin/pip install --quiet --constraint constraints-min.txt torch
	.venv-min/bin/pip install --quiet --constraint constraints-min.txt --editable '.[test]'
	touch $@

demo: $(VENV)/.installed ## Embed and rank the media in examples/media, draw outputs/demo.png
	$(RUN) examples/demo.py

test: $(VENV)/.installed ## Run all tests, offline, on CPU
	$(RUN) -m pytest

test-min: .venv-min/.installed ## Run the core tests on the oldest supported libraries
	.venv-min/bin/python -m pytest tests/test_vectors.py tests/test_processor.py tests/test_doors.py

check: $(VENV)/.installed ## Format, lint and types, without changing anything
	$(RUN) -m ruff format --check $(SOURCES)
	$(RUN) -m ruff check $(SOURCES)
	MYPYPATH=. $(RUN) -m mypy $(SOURCES)

fix: $(VENV)/.installed ## Format and fix what can be fixed
	$(RUN) -m ruff check --fix $(SOURCES)
	$(RUN) -m ruff format $(SOURCES)

bench: $(VENV)/.installed ## Print what each part of an embedding costs (BENCH="compare --quick": beside other systems)
	$(RUN) -m plume.benchmarks $(BENCH)

clean: ## Remove environments and build outputs
	rm -rf .venv .venv-min build dist *.egg-info outputs
