# Two commands set everything up and do the main things: `make demo` and `make test`.
# What is set up lies in .venv and .wheels; a second call finds it there. The results of runs are never removed.

VENV := .venv
BIN := $(VENV)/bin
# Twice quiet: no warnings, but errors.
PIP := $(BIN)/pip --quiet --quiet --disable-pip-version-check
CONSTRAINED := $(PIP) install --constraint constraints.txt
FALCONN := falconn==1.3.1
DEMO := run --model now-playing --preset tiny --dataset synth

# FALCONN is compiled for the very processor at hand, so its wheel is kept and marked by the processor's features.
CPU := $(shell { grep -m1 -E '^(flags|Features)' /proc/cpuinfo; uname -sm; } 2>/dev/null | cksum | cut -d' ' -f1)
WHEELS := .wheels/$(CPU)

BASE := $(VENV)/.base
PACKAGE := $(VENV)/.package
INDEX := $(VENV)/.falconn-$(CPU)
SETUP := $(VENV)/.setup
DEV := $(VENV)/.dev

# The first of these that is of the right version, can make environments and has the headers that FALCONN needs.
PYTHONS = $(or $(PYTHON),python3.11 python3.12 python3 /usr/bin/python3)
SUITABLE := import os, sys, sysconfig; sys.version_info[:2] in ((3, 11), (3, 12)) or sys.exit(1); \
	import ensurepip, venv; os.path.exists(sysconfig.get_path("include") + "/Python.h") or sys.exit(1)
NO_PYTHON := needs Python 3.11 or 3.12 with venv and headers: run 'apt-get install python3 python3-venv python3-dev' as \
	root, or name one that has them with PYTHON=/path/to/python3.12
NO_COMPILER := needs a C++ compiler to build FALCONN: run 'apt-get install g++' as root
stop = { echo "make: $(1)" >&2; exit 1; }

.PHONY: setup demo test campaign lint types clean

setup: $(SETUP)

demo: setup
	$(BIN)/bench $(DEMO)

# One file of tests stays in one process, so that what a file prepares is prepared once. Files are shared out in the order
# of tests/conftest.py, the longest first; without the option, xdist begins with those of most tests, which are short.
test: $(DEV)
	$(BIN)/pytest --numprocesses auto --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

# Half an hour by default, one command after another; docs/reliability.md says what is tried, and how to repeat a failure.
campaign: $(DEV)
	$(BIN)/pytest -m campaign tests/campaign $(PYTEST_ARGS)

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy reads packages as folders: a tree of links shows it the mapping that pyproject.toml makes at installation.
types: $(DEV)
	@rm -rf .typing && mkdir -p .typing/bench
	@ln -s $(addprefix ../../,$(wildcard bench/*) datasets models reports sweeps) .typing/bench/
	cd .typing && ../$(BIN)/mypy --strict --config-file ../pyproject.toml --cache-dir ../.mypy_cache --package bench

clean:
	rm -rf $(VENV) .wheels .typing build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(BASE): constraints.txt
	@test -x $(BIN)/pip || { \
		for python in $(PYTHONS); do $$python -c '$(SUITABLE)' 2>/dev/null && break; python=; done; \
		test -n "$$python" || $(call stop,$(NO_PYTHON)); \
		echo "making $(VENV) with $$python"; $$python -m venv $(VENV); }
	@$(CONSTRAINED) --upgrade pip
	@$(CONSTRAINED) setuptools wheel pybind11 numpy
	@touch $@

$(PACKAGE): $(BASE) pyproject.toml
	@echo "installing the libraries; torch alone is large, so this takes some minutes"
	@$(CONSTRAINED) --no-build-isolation --editable '.[faiss]'
	@touch $@

# CPPFLAGS puts a new pybind11 before the one inside the source package, which does not compile with Python 3.11.
# No cache and no ready wheel is used: it may be for another processor.
$(INDEX): $(PACKAGE)
	@tag=$$($(BIN)/python -c 'import sys; print("cp%d%d" % sys.version_info[:2])'); \
	test -n "$$(find $(WHEELS) -name "*-$$tag-*.whl" 2>/dev/null)" || { \
		command -v $(firstword $(CXX)) >/dev/null || $(call stop,$(NO_COMPILER)); \
		echo "building FALCONN from source, about two minutes"; \
		CPPFLAGS="$$($(BIN)/python -m pybind11 --includes)" $(PIP) wheel --no-deps --no-build-isolation --no-cache-dir \
			--no-binary falconn --wheel-dir $(WHEELS) $(FALCONN); }
	@$(PIP) install --no-deps --no-index --find-links $(WHEELS) --force-reinstall $(FALCONN)
	@touch $@

$(SETUP): $(INDEX)
	@$(BIN)/bench doctor --fix
	@touch $@

$(DEV): $(SETUP)
	@echo "installing what the tests, lint and types need"
	@$(CONSTRAINED) --group dev
	@touch $@
