# make demo, make test: everything else they need they install into .venv themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo

# Its theme would tell of a successor on every call.
export NO_MKDOCS_2_WARNING := 1

.PHONY: demo quick test test-all bench docs lint types clean

demo: $(VENV)/.installed
	rm -rf $(DEMO)
	mkdir -p $(DEMO)
	$(BIN)/efat chips generate --array 32x32 --count 20 --fault-rate 0.005:0.1 --seed 7 -o $(DEMO)/lot.h5
	$(BIN)/efat simulate --network digits-cnn --lot $(DEMO)/lot.h5 --chip chip-0001 --chip chip-0003
	$(BIN)/efat resilience --network digits-cnn --lot $(DEMO)/lot.h5 --mitigation fam+t --rates 0.01,0.03,0.06,0.1 --repeats 3 --levels 5,10,20,40 -o $(DEMO)/resilience
	$(BIN)/efat plan --resilience $(DEMO)/resilience --lot $(DEMO)/lot.h5 --max-drop 2% --margin 0.5% -o $(DEMO)/plan.json
	$(BIN)/efat retrain --plan $(DEMO)/plan.json -o $(DEMO)/retrained
	$(BIN)/efat report $(DEMO)/retrained

test: lint types
	$(BIN)/python -m pytest -n auto

# The daily loop: what starts no process and runs no page of docs.
quick: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n auto -m "not slow and not integration" --hypothesis-profile=quick

test-all: lint types $(VENV)/.installed-test-all
	$(BIN)/python -m pytest -n auto -m "slow or not slow"

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mdformat --check README.md CHANGELOG.md docs
	$(BIN)/lint-imports --no-cache

types: $(VENV)/.installed-test
	$(BIN)/mypy
	$(BIN)/mypy benchmarks

# A site of the README, the pages of docs/ and what the packages export: build/site/index.html.
docs: $(VENV)/.installed-docs
	$(BIN)/mkdocs build --quiet

bench: $(VENV)/.installed-test
	$(BIN)/python benchmarks/cycle_engine.py
	$(BIN)/python benchmarks/emulation.py
	$(BIN)/python benchmarks/rtl_speed.py
	$(BIN)/python benchmarks/fault_aware_training.py speed

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "Error: $$($(PYTHON) --version) found, 3.10 or newer needed: make PYTHON=python3.x"; exit 2; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  && apt-get update -q && apt-get install -qy python3-venv; } \
	  || { echo "Error: this Python cannot make virtual environments: sudo apt-get install python3-venv"; exit 2; }
	$(PYTHON) -m venv $(VENV)

# An install is redone when the dependencies change.
$(VENV)/.installed: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.installed-%: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@

clean:
	rm -rf $(VENV) $(DEMO) build dist *.egg-info
