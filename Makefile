# Everything a developer runs. Needs Python 3.10 or newer and make; the rest goes into a virtual environment.

PYTHON ?= python3
VENV ?= .venv
TRANSFORMER_LENS ?= 3.9.0
PIP_ARGS ?=
PYTEST_ARGS ?= --numprocesses 2 --dist loadfile
OUT ?= demo
DEMO_ARGS ?=

INSTALLED := $(VENV)/.installed
DOCUMENTED := $(VENV)/.documented

.DEFAULT_GOAL := help
.PHONY: help demo test check docs clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 8
	@echo
	@echo "Variables: PYTHON=$(PYTHON)  VENV=$(VENV)  TRANSFORMER_LENS=$(TRANSFORMER_LENS)"
	@echo "           PIP_ARGS, given to pip install (say, an index with the torch build for your machine)"
	@echo "           PYTEST_ARGS=$(PYTEST_ARGS)"
	@echo "           DEMO_ARGS, given to lrt-tl demo (say, --source medium --behavior mood)"

# What an earlier demonstration left is replaced; a folder that is none is refused by the command itself.
demo: $(INSTALLED) ## carry vectors from a small model to a large one, both bundled, and show what they do
	@if test -f '$(OUT)/summary.json' && test -f '$(OUT)/report.html'; then rm -r '$(OUT)'; fi
	HF_HUB_OFFLINE=1 $(VENV)/bin/lrt-tl demo --out '$(OUT)' $(DEMO_ARGS)

# One thread a worker: workers that each start a thread a core wait for one another most of the time.
test: $(INSTALLED) ## run the tests, offline
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest $(PYTEST_ARGS)

# A Chrome or Chromium makes the pictures that are kept. Without one, or to keep nothing: the last step of .ci/run.
.PHONY: tutorials
tutorials: $(INSTALLED) ## run the notebooks of tutorials/, and keep what they show
	HF_HUB_OFFLINE=1 $(VENV)/bin/python tutorials/run.py

check: $(INSTALLED) ## lint, formatting, types, direction of the imports
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

# mkdocs takes a warning, such as a broken link, for an error. It needs no network.
docs: $(DOCUMENTED) ## build the documentation site into site/
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict

clean: ## remove the environments and all caches
	rm -rf .venv* build dist site .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp holds the version of TransformerLens that was asked for. It is out of date when another one is, or when the
# environment does not run.
ifneq ($(shell $(VENV)/bin/python -c '' 2>/dev/null && cat $(INSTALLED) 2>/dev/null),$(TRANSFORMER_LENS))
.PHONY: $(INSTALLED)
endif

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "$(PYTHON) is missing or older than 3.10: name another one, as in make PYTHON=python3.12 test" >&2; exit 1; }
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip --version >/dev/null || \
	  { echo "$(VENV) is damaged: remove the folder and try again" >&2; exit 1; }
	@echo "Setting up $(VENV): torch, TransformerLens and what the tests need. It takes some minutes."
	@$(VENV)/bin/python -m pip install --quiet $(PIP_ARGS) --constraint constraints.txt torch
	@$(VENV)/bin/python -m pip install --quiet $(PIP_ARGS) --constraint constraints.txt \
	  --editable '.[dev]' 'transformer-lens==$(TRANSFORMER_LENS)'
	@echo '$(TRANSFORMER_LENS)' > $@

$(DOCUMENTED): $(INSTALLED)
	@$(VENV)/bin/python -m pip install --quiet $(PIP_ARGS) --constraint constraints.txt \
	  --editable '.[docs]' 'transformer-lens==$(TRANSFORMER_LENS)'
	@touch $@
