# make demo: tune a real model end to end.   make test: everything that must pass before a change lands.
# Needs Python 3.11 or newer, pip and make. Each target creates .venv when it is missing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q -c constraints.txt
JOBS ?= 2
export PYTHONDONTWRITEBYTECODE := 1

.PHONY: demo test test-full programs lint types layers unit format bench-lint bench-lint-accuracy bench-op-support bench-estimate bench-search clean

demo: $(VENV)/.demo
	$(BIN)/python examples/demo.py

test: $(VENV)/.dev lint types layers unit

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

layers: $(VENV)/.dev
	$(BIN)/lint-imports

unit: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(JOBS)

# Nothing may be left out: a test that is skipped, for want of a browser or of a library, has failed.
test-full: programs $(VENV)/.dev $(VENV)/.exports
	$(BIN)/python -m pytest -n $(JOBS) -m "not gpu" --no-skips

# What the full tests run beside Python: known before minutes of installing and testing.
programs:
	@missing=; for name in git patch; do command -v $$name >/dev/null || missing="$$missing $$name"; done; \
	browser=; for name in chromium chromium-browser google-chrome chrome; do \
	  if command -v $$name >/dev/null; then browser=$$name; fi; done; \
	if [ -z "$$browser" ]; then missing="$$missing chromium"; fi; \
	if [ -n "$$missing" ]; then \
	  echo "make test-full: not on the PATH:$$missing; install it, on Debian or Ubuntu: apt-get install$$missing"; exit 1; fi

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-lint: $(VENV)/.dev
	$(BIN)/python tests/benchmarks/lint_speed.py

# Findings on real packages against the committed readings; fetches the packages that are not in SOURCES.
SOURCES ?= build/lint-sources
bench-lint-accuracy: $(VENV)/.dev
	mkdir -p $(SOURCES)
	PYTHONPATH=.:rules $(BIN)/python -m tests.benchmarks.lint_accuracy $(SOURCES) --fetch --write

# Which ops run in which format on the devices here; regenerates amptune/data/op_support.json.
bench-op-support: $(VENV)/.dev
	PYTHONPATH=.:rules $(BIN)/python tests/benchmarks/op_support.py

# Predicted against measured steps; needs a GPU and a CUDA build of torch.
bench-estimate: $(VENV)/.dev
	PYTHONPATH=.:rules $(BIN)/python tests/benchmarks/estimate_check.py
	PYTHONPATH=.:rules $(BIN)/python tests/benchmarks/kernel_times.py --out tests/benchmarks/reports

# Which search finds the fastest valid plan in 10, 20 and 50 trials; minutes on an idle machine, no GPU.
bench-search: $(VENV)/.dev
	PYTHONPATH=.:rules $(BIN)/python tests/benchmarks/search_quality.py

clean:
	rm -rf $(VENV) amptune-out

# torch is installed by itself and first: a range would pull a build with several GB of CUDA libraries.
$(VENV)/.torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "amptune needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(PIP) -e '.[tune,report]'
	touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(PIP) -e '.[dev]'
	touch $@

# The trainers that exports are loaded in, beside the packages of .venv: some of them would change its versions.
$(VENV)/.exports: $(VENV)/.dev tests/export/requirements.txt tests/export/environment.py
	$(BIN)/python tests/export/environment.py $(VENV)/exports
	touch $@
