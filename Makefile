# Two commands matter: `make chat` and `make test`. Everything else serves them.
#
#   make chat                        talk to the default model
#   make chat PROMPT="Hello"         answer once and exit
#   make chat MODEL=path/to/model    another model: folder, .gguf file or hub id
#   make test                        lint, types and every test
#   make sanitize                    the CPU kernels over random models with the compiler's sanitizers

PYTHON ?= python3
MODEL ?= smollm2-135m
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Taken literally, so that a dollar sign in a prompt stays one.
export QWENKIT_PROMPT := $(value PROMPT)
export QWENKIT_MODEL := $(value MODEL)
# Build isolation installs under the same constraints.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt

.DEFAULT_GOAL := help
.PHONY: help chat test test-data check sanitize clean

help:
	@sed -n 's/^#   //p' Makefile

chat: .venv/.core
	@if [ -n "$$QWENKIT_PROMPT" ]; then \
		exec $(BIN)/qwenkit chat -m "$$QWENKIT_MODEL" -- "$$QWENKIT_PROMPT" </dev/null; \
	else \
		exec $(BIN)/qwenkit chat -m "$$QWENKIT_MODEL"; \
	fi

# Two at a time, each on one thread; then, one after the other, what measures time or memory.
test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not serial" tests
	$(BIN)/python -m pytest -m serial tests/e2e

check: .venv/.test test-data
	scripts/check

sanitize:
	scripts/sanitize

test-data: .venv/.test
	@$(BIN)/python scripts/fetch_test_data.py
	@$(BIN)/python -m scripts.fetch_browser

.venv/.core: pyproject.toml setup.py constraints.txt $(wildcard csrc/*)
	@echo "Installing into .venv (once; a few minutes on a slow line) ..."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "qwenkit needs Python 3.10 or later, this is " + sys.version.split()[0])'
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv
	@$(PIP) install -q -e .
	@touch $@

.venv/.test: .venv/.core
	@echo "Installing the test tools into .venv ..."
	@$(PIP) install -q -e '.[test]'
	@touch $@

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis src/*.egg-info
