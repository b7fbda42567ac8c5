.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
SOURCES := .
BENCH ?= parts
# A free worker takes the next file: what a module builds for its tests is built once.
WORKERS ?= -n logical --maxprocesses 4 --dist loadfile

.PHONY: help demo train-demo test test-all test-min test-runtime test-examples search search-puzzles check fix bench clean

help: ## Show this help
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

# One environment per set of constraints. torch comes first, by its exact version.
$(VENV)/.installed: setup.py pyproject.toml constraints.txt
	@echo "Installing into $(VENV): some minutes, most of them for torch"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt torch
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

.venv-min/.installed: setup.py pyproject.toml constraints-min.txt
	@echo "Installing the oldest supported libraries into .venv-min: some minutes"
	$(PYTHON) -m venv .venv-min
	.venv-min/bin/pip install --quiet --constraint constraints-min.txt torch
	.venv-min/bin/pip install --quiet --constraint constraints-min.txt --editable '.[test]'
	touch $@

.venv-examples/.installed: setup.py pyproject.toml constraints.txt constraints-examples.txt
	@echo "Installing the libraries of apps/ and examples/ into .venv-examples: some minutes"
	$(PYTHON) -m venv .venv-examples
	grep -v '^pillow==' constraints.txt | cat - constraints-examples.txt > .venv-examples/constraints.txt
	.venv-examples/bin/pip install --quiet --constraint .venv-examples/constraints.txt torch
	.venv-examples/bin/pip install --quiet --constraint .venv-examples/constraints.txt --editable '.[apps,integrations,train]'
	.venv-examples/bin/pip install --quiet --no-deps langchain-huggingface==1.2.3 # asks for huggingface-hub below 2, runs with 2.4
	touch $@

.venv-runtime/.installed: setup.py pyproject.toml constraints.txt
	@echo "Installing the runtime without torch into .venv-runtime"
	$(PYTHON) -m venv .venv-runtime
	.venv-runtime/bin/pip install --quiet --constraint constraints.txt --editable '.[runtime,video]'
	touch $@

.venv-docs/.installed: constraints-docs.txt
	@echo "Installing mkdocs into .venv-docs"
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install --quiet --requirement constraints-docs.txt
	touch $@

demo: $(VENV)/.installed ## Ask plume-tiny puzzles and plume-pictures for emoji, none of which they saw; draw outputs/demo.png, pictures-demo.png
	$(RUN) examples/demo.py
	$(RUN) examples/pictures_demo.py

train-demo: $(VENV)/.installed ## Train a small model with latent steps and one without, draw outputs/train-demo/curves.png
	$(RUN) examples/train_demo.py

test: $(VENV)/.installed ## Run the tests, offline, on CPU, in a few minutes
	$(RUN) -m pytest $(WORKERS) -m "not slow"

test-all: $(VENV)/.installed ## Run the slow tests too
	$(RUN) -m pytest $(WORKERS) --no-loadscope-reorder # the longest files have few tests: not last

test-min: .venv-min/.installed ## Run the core tests on the oldest supported libraries
	.venv-min/bin/python -m pytest tests/test_vectors.py tests/test_processor.py tests/test_entry_points.py tests/test_plume_tiny.py tests/test_embed.py

test-examples: .venv-examples/.installed ## Run the tests of apps/ and examples/
	.venv-examples/bin/python -m pytest tests/test_search.py tests/test_search_page.py tests/test_distributed.py tests/test_serving.py tests/test_serving_runtime.py tests/test_integrations.py \
		tests/test_pages.py::test_a_command_of_the_pages_is_understood_by_its_command_line \
		$(patsubst %,'tests/test_page_commands.py::test_a_page_runs_as_printed[%.md]',search serving corpus runtime)

test-runtime: $(VENV)/.installed .venv-runtime/.installed ## Run an exported model in an environment without torch
	$(RUN) -m pytest tests/test_runtime_alone.py

search: .venv-examples/.installed ## Index 415 emoji, open the search page: type a word in one of 29 languages
	.venv-examples/bin/plume search index examples/pictures --index outputs/pictures-index --model pictures
	.venv-examples/bin/plume search page --index outputs/pictures-index --model pictures

MODEL ?= tiny
search-puzzles: .venv-examples/.installed ## Index the media and a playground folder, open the search page (MODEL=folder or Hub id)
	.venv-examples/bin/plume search world outputs/playground
	.venv-examples/bin/plume search index examples/media outputs/playground/documents --model $(MODEL)
	.venv-examples/bin/plume search page --world outputs/playground --model $(MODEL)

check: $(VENV)/.installed ## Format, lint and types, without changing anything
	$(RUN) -m ruff format --check $(SOURCES)
	$(RUN) -m ruff check $(SOURCES)
	MYPYPATH=. $(RUN) -m mypy $(SOURCES)

fix: $(VENV)/.installed ## Format and fix what can be fixed
	$(RUN) -m ruff check --fix $(SOURCES)
	$(RUN) -m ruff format $(SOURCES)

bench: $(VENV)/.installed ## Print what each part of an embedding costs (BENCH="compare --quick": next to other systems)
	$(RUN) -m plume.benchmarks $(BENCH)

.PHONY: docs
docs: .venv-docs/.installed ## Build the documentation with its API reference into outputs/site
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --quiet --strict

clean: ## Remove environments and build outputs
	rm -rf .venv .venv-min .venv-examples .venv-runtime .venv-docs build dist *.egg-info outputs
