# Two commands on a fresh machine: `make demo`, then `make test`. Both install the exact versions in requirements/.
# Another Python: make PYTHON=python3.12 test
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
BUILT := pyproject.toml $(wildcard requirements/*.txt native/*.cpp native/*.h native/CMakeLists.txt)
LOCKED := --constraint requirements/locked.txt --build-constraint requirements/build.txt
WORKERS ?= 2

.PHONY: demo test check docs sanitize lock latest lowest clean

# Installs quept and runs its main job on the built-in model.
demo: $(VENV)/.demo
	$(BIN)/quept demo

# Every check and test; the same command that continuous integration runs.
test: check
	$(BIN)/pytest -n $(WORKERS)

check: $(VENV)/.dev docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The documentation, into build/site; its generated pages must agree with the code.
docs: $(VENV)/.dev
	$(BIN)/python scripts/docs/generate.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The kernels' tests with every access to memory checked.
sanitize: $(VENV)/.dev
	scripts/sanitize.sh

# Moves requirements/ to the newest versions that pyproject.toml allows.
lock:
	$(PYTHON) scripts/versions.py lock

# The tests with the newest versions that pyproject.toml allows, then with the newest there are; HOLD=torch keeps one.
latest:
	$(PYTHON) scripts/versions.py allowed $(HOLD:%=--hold %)
	$(PYTHON) scripts/versions.py newest $(HOLD:%=--hold %)

# The tests with the oldest versions that pyproject.toml allows.
lowest:
	$(PYTHON) scripts/versions.py lowest $(HOLD:%=--hold %)

$(VENV)/.demo: $(BUILT)
	$(call install,plots)

$(VENV)/.dev: $(BUILT)
	$(call install,dev)

define install
@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 13) or sys.exit("error: quept needs Python 3.11 to 3.13, and $(PYTHON) is %d.%d. Name another: make PYTHON=python3.12" % v)'
@echo "Setting up $(VENV), once: PyTorch, transformers and what quept needs besides, then quept's own kernels."
@echo "A few hundred megabytes are downloaded, several gigabytes where PyTorch comes with CUDA."
$(PYTHON) -m venv $(VENV)
$(BIN)/python -m pip install --constraint requirements/build.txt --upgrade pip
$(BIN)/python -m pip install $(LOCKED) --editable '.[$(1)]'
@touch $@
endef

clean:
	rm -rf .venv .venv-* quept-demo build .pytest_cache .mypy_cache .ruff_cache
