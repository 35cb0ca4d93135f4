# Everything a developer types. `make demo` and `make test` need only Python >= 3.11, pip, git and make.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

# Without Ceph the tests take ministack; without Chromium or Postgres they skip what needs them.
E2E_PACKAGES := chromium postgresql ceph-common ceph-mon ceph-osd radosgw

export DO_NOT_TRACK = 1
export PREFECT_SERVER_ANALYTICS_ENABLED = false

.PHONY: audit demo test test-slow check check-infra drills format lock versions clean e2e bench bench-exactness bench-extract bench-merging bench-flow

demo: $(VENV)/installed          ## fuse three small models into a fourth on real text, and compare
	$(BIN)/llm-fuse demo

test: $(VENV)/installed          ## the whole test suite
	$(BIN)/pytest

e2e: $(VENV)/installed           ## a browser, Postgres, an S3 server, workers: real processes; screenshots in build/e2e (minutes)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,e2e]"
	@if command -v apt-get > /dev/null && [ "$$(id -u)" = 0 ]; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends $(E2E_PACKAGES) > /dev/null; \
	else echo "what is absent is skipped; on Debian: sudo apt install $(E2E_PACKAGES)"; fi
	$(BIN)/pytest -m slow -rs --timeout 600 tests/e2e

test-slow: $(VENV)/installed     ## what takes a minute or more: servers, many processes, whole comparisons
	$(BIN)/pytest -m slow --ignore tests/e2e

drills: $(VENV)/installed        ## kills, broken lines, full disks, damage, crowds (9 minutes); DRILLS="kill --short" runs one
	$(BIN)/python -m tests.drills $(DRILLS)

check: $(VENV)/installed         ## format, lint, types, layers, step versions, infra, known vulnerabilities
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest tests/test_layers.py tests/test_step_versions.py tests/infra
	$(BIN)/python -m tests.audit

audit: $(VENV)/installed         ## known vulnerabilities of what is locked; says so where nobody can be asked
	$(BIN)/python -m tests.audit

check-infra: $(VENV)/installed   ## deployments, images and manifests against their schemas
	$(BIN)/pytest tests/infra

format: $(VENV)/installed        ## rewrite the code in the house's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

versions: $(VENV)/installed      ## after changing a step's code: record it (see CONTRIBUTING.md)
	$(BIN)/python -m tests.test_step_versions $(STEPS)

lock:                            ## resolve pyproject.toml anew into constraints.txt (Linux, CPU, Python 3.11)
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet "torch==2.13.0" -e ".[dev,e2e]"
	build/lock/bin/pip list --format=freeze --exclude-editable \
	  | sed 's/+cpu$$//' \
	  | grep -viE '^(pip=|setuptools=|wheel=|triton=|nvidia-|cuda-|llm-fuse=)' > constraints.txt
	rm -rf build/lock

bench: $(VENV)/installed         ## times and memory against twins in the same run; BENCH="losses" runs one
	$(BIN)/python -m tests.bench $(BENCH) --json build/bench.json

bench-exactness: $(VENV)/installed ## how wrong a teacher across tokenizers is, by enumeration
	mkdir -p build
	$(BIN)/python -m tests.bench.exactness --json build/exactness.json
	$(BIN)/python -m tests.bench.remaining_error --json build/remaining_error.json

bench-extract: $(VENV)/installed ## extraction against the bare forward pass: tokens/s and memory
	$(BIN)/python -m tests.bench extract --json build/extract.json

bench-merging: $(VENV)/installed ## memory and time of merging two models of 7B shapes (needs 3 GB in build/)
	mkdir -p build
	$(BIN)/python -m tests.bench.merging --folder build --json build/merging.json

bench-flow: $(VENV)/installed    ## what orchestration costs: 3 sources x 200 shards through a real server (minutes)
	mkdir -p build
	$(BIN)/python -m tests.bench.flow --json build/flow.json

clean:                           ## remove the environment and caches; the store (.llm-fuse) stays
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "llm-fuse needs Python >= 3.11, found " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@
