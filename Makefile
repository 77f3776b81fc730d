# Two commands matter: `make demo` and `make test`. Each sets up .venv first, once; both can be repeated.

PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO_ARGS ?=
PYTEST_ARGS ?=

# One thread for each process: OpenMP's busy waiting on contended cores makes small models many times slower.
export OMP_NUM_THREADS := 1
export OPENBLAS_NUM_THREADS := 1
export MKL_NUM_THREADS := 1
export OMP_WAIT_POLICY := PASSIVE
export TOKENIZERS_PARALLELISM := false
# Nothing is ever fetched at run time.
export HF_HUB_OFFLINE := 1
export HF_HUB_DISABLE_TELEMETRY := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test

help:
	@echo "make demo    set up, then run the whole path: collect, sft, align, head, export, evaluation, report"
	@echo "make test    set up, then run the whole gate: format, lint, types, import contracts, pytest with the wheel check"
	@echo "make setup   only set up .venv (again only when pyproject.toml or constraints.txt changed)"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@if $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		echo "== set-up 1/3: $(VENV) is there"; \
	else \
		echo "== set-up 1/3: making $(VENV) with $(PYTHON)"; \
		$(PYTHON) -m venv $(VENV) || { \
			echo "error: '$(PYTHON) -m venv' failed; install Python 3.11 with its venv module (Debian: apt install python3.11-venv)" >&2; \
			echo "       or name another interpreter: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; \
			exit 2; }; \
	fi
	@echo "== set-up 2/3: build tools"
	@$(BIN)/python -m pip install -q -c constraints.txt setuptools hatchling editables
	@echo "== set-up 3/3: roboalign and its pinned dependencies (about 2 GB on disk; minutes the first time)"
	@$(BIN)/python -m pip install -q --no-build-isolation -c constraints.txt -e '.[all,dev]'
	@touch $(READY)
	@echo "== set-up done"

demo: $(READY)
	@echo "== roboalign demo"
	@$(BIN)/roboalign demo $(DEMO_ARGS)

# pytest comes last, so that its closing line, which counts what was skipped, is the last line printed.
test: $(READY)
	@echo "== format: ruff format --check"
	@$(BIN)/ruff format --check .
	@echo "== lint: ruff check"
	@$(BIN)/ruff check .
	@echo "== types: mypy"
	@$(BIN)/mypy
	@echo "== import contracts: lint-imports"
	@$(BIN)/lint-imports
	@echo "== tests: pytest, the fast suite and the gate suite (the built wheel in a clean environment, Python 3.10)"
	@$(BIN)/python -m pytest --also gate $(PYTEST_ARGS)
