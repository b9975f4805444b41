# Two commands on a fresh machine: `make demo`, then `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BUILT := pyproject.toml $(wildcard native/*.cpp native/*.h native/CMakeLists.txt)

.PHONY: demo test check sanitize clean

# Installs quept and runs its main job on the built-in model.
demo: $(VENV)/.demo
	$(BIN)/quept demo

# Every check and test; the same command that continuous integration runs.
test: check
	$(BIN)/pytest -n 2

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The kernels' tests with every access to memory checked.
sanitize: $(VENV)/.dev
	scripts/sanitize.sh

$(VENV)/.demo: $(BUILT)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[plots]'
	touch $@

$(VENV)/.dev: $(BUILT)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) quept-demo build .pytest_cache .mypy_cache .ruff_cache
