# What a checkout can do. Needs Python 3.11 or newer, pip, make; everything else is set up in .venv.
#
#   make demo    a real job against mock endpoints: nothing to configure, no key, no network but the package index
#   make test    format, lint, types, import contracts, then all tests; what .ci/run calls

PYTHON ?= python3
BIN := .venv/bin
export RAY_USAGE_STATS_ENABLED := 0
export PYTHONUNBUFFERED := 1

# The first of these that is 3.11 or newer makes the environment.
CANDIDATES := $(PYTHON) python3.11 python3.12 python3.13 python3

# Two stamps, since the demo needs no test tools. Either is made again when a dependency changes.
BASE := .venv/.installed
TEST := .venv/.installed-test
DEPENDENCIES := pyproject.toml constraints.txt
PEER := build/peers/litellm/.installed
PEERS := $(PEER) build/peers/curator/.installed build/peers/sdk-langchain/.installed
SDKS := $(patsubst tests/peers/%.txt,build/peers/sdk-%/.installed,$(wildcard tests/peers/*.txt))

.DEFAULT_GOAL := help
.PHONY: help demo check test fast sdks faults prove bench bench-page peers gateway-bench ray-data-bench guards overspend capacity tail soak clean

help:
	@echo "make demo    set up .venv and run a job of 400 rows against three mock tiers, into demo-out/"
	@echo "make check   format, lint, strict types, import contracts"
	@echo "make fast    the unit tests only"
	@echo "make test    check, then all tests"
	@echo "make sdks    the gateway through litellm, instructor, LangChain and pydantic-ai, each in an environment of its own"
	@echo "make faults  the whole fault matrix, every row of tests/faults/matrix.py (make test runs the quick ones)"
	@echo "make slow    the long tests that make test leaves out, beside the faults"
	@echo "make prove   run COUNT (1,000,000) simulated histories of faults from seed FIRST (0) on: no overspend, no leak"
	@echo "make bench   measure the throughput on this machine"
	@echo "make bench-page   all benchmarks and what they are compared with, as one page: bench-out/index.html (over an hour; BENCH=--quick to try)"
	@echo "make guards   what budgets, coalescing and metrics cost of it"
	@echo "make gateway-bench   what the gateway costs its callers, beside LiteLLM's proxy and a direct connection"
	@echo "make ray-data-bench   a Ray Data pipeline through raycade, beside ray.data.llm and plain aiohttp"
	@echo "make overspend   the same budget and demand against Raycade and LiteLLM, which gets an environment of its own"
	@echo "make tail    a batch on an endpoint with stragglers, with and without hedging"
	@echo "make soak    a job of MINUTES (30) with a fault every 20 s: is anything lost, do memory and open files grow?"
	@echo "make capacity    what a tier finds out about its endpoint's limits by itself, in some 15 minutes"
	@echo "make clean   remove .venv, caches, demo-out/ and bench-out/"
	@echo "PYTHON=/path/to/python3.11 chooses the Python that .venv is made with."

demo: $(BASE)
	@$(BIN)/python -m benchmarks.demo

check: $(TEST)
	@echo "== format and lint (ruff)"
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@echo "== types (mypy, strict)"
	@$(BIN)/mypy
	@echo "== import contracts (import-linter)"
	@$(BIN)/lint-imports

SEEDS = tests/simulation/test_simulation.py
test: check
	@echo "== ten thousand simulated histories, on all cores"
	@$(BIN)/python -m pytest -q $(SEEDS) --durations 1
	@echo "== all other tests (pytest, three processes: the long ones wait for Ray, and come first)"
	@$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --ignore $(SEEDS) --durations 10

fast: $(TEST)
	@$(BIN)/python -m pytest tests/unit

sdks: $(TEST) $(SDKS)
	@RAYCADE_TEST_SDKS=all $(BIN)/python -m pytest tests/e2e/test_sdks.py

slow: $(TEST)
	@$(BIN)/python -m pytest tests -m slow --ignore tests/faults --durations 10

faults: $(TEST)
	@$(BIN)/python -m pytest tests/faults -m "" --durations 10

COUNT ?= 1000000
FIRST ?= 0
prove: $(TEST)
	@$(BIN)/python -m tests.simulation --count $(COUNT) --first $(FIRST)

bench: $(BASE)
	@$(BIN)/python -m benchmarks.overhead

# What could not be set up is left out of the page, which says so.
BENCH ?=
bench-page: $(TEST)
	@$(MAKE) --no-print-directory --keep-going peers || echo "going on without what could not be set up"
	@$(BIN)/python -m benchmarks.page $(BENCH)

# What raycade is compared with: each in an environment of its own.
peers: $(PEERS)

guards: $(BASE)
	@$(BIN)/python -m benchmarks.guards

gateway-bench: $(BASE) $(PEER)
	@$(BIN)/python -m benchmarks.gateway

ray-data-bench: $(TEST)
	@$(BIN)/python -m benchmarks.ray_data

overspend: $(BASE) $(PEER)
	@$(BIN)/python -m benchmarks.overspend

tail: $(BASE)
	@$(BIN)/python -m benchmarks.tail

MINUTES ?= 30
soak: $(BASE)
	@$(BIN)/python -m benchmarks.soak --minutes $(MINUTES)

capacity: $(BASE)
	@$(BIN)/python -m benchmarks.capacity

# What we are compared with: some hundreds of MB each, pinned, and never in .venv.
build/peers/%/.installed: SHELL := /bin/bash
build/peers/%/.installed: benchmarks/peers/%.txt | .venv/bin/python
	@echo "== installing $* into build/peers/$* (a minute or two; what pip says is in build/peers/$*.log)"
	@mkdir -p build/peers && $(BIN)/python -m venv build/peers/$*
	@build/peers/$*/bin/python -m pip install --disable-pip-version-check --no-input --progress-bar off --timeout 60 \
	  -r $< > build/peers/$*.log 2>&1 \
	  || { tail -n 20 build/peers/$*.log >&2; echo "The installation failed; the lines above say why." >&2; exit 1; }
	@touch $@

# The clients that the gateway is tried with: some 500 MB together, pinned, and never in .venv.
build/peers/sdk-%/.installed: SHELL := /bin/bash
build/peers/sdk-%/.installed: tests/peers/%.txt | .venv/bin/python
	@echo "== installing $* into build/peers/sdk-$*"
	@mkdir -p build/peers && $(BIN)/python -m venv build/peers/sdk-$*
	@build/peers/sdk-$*/bin/python -m pip install --disable-pip-version-check --no-input --progress-bar off --no-compile \
	  -r $< > build/peers/sdk-$*.log 2>&1 \
	  || { tail -n 20 build/peers/sdk-$*.log >&2; echo "The installation failed; the lines above say why." >&2; exit 1; }
	@touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache demo-out bench-out *.egg-info build
	find runtime actors benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@found=; for python in $(CANDIDATES); do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found="$$python"; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "Raycade needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1 || true)." >&2; \
	  echo "Install it, or name it: make PYTHON=/path/to/python3.11" >&2; \
	  exit 1; \
	fi; \
	echo "== making .venv with $$("$$found" --version)"; \
	"$$found" -m venv .venv || { rm -rf .venv; echo "Making .venv failed; Debian and Ubuntu need the package python3-venv." >&2; exit 1; }

# All that pip says goes to a log; a line now and then shows that it goes on, and a failure shows the log's end.
define install
	@echo "== installing $(1) into .venv (some minutes the first time; what pip says is in .venv/install.log)"
	@set -o pipefail; $(BIN)/python -m pip install --disable-pip-version-check --no-input --progress-bar off \
	  -c constraints.txt -e $(2) 2>&1 | tee .venv/install.log \
	  | awk '/^Collecting/ && ++n % 20 == 0 { printf "   %d packages found\n", n; fflush() } \
	         /^Installing collected/ { print "   installing them"; fflush() }' \
	  || { tail -n 20 .venv/install.log >&2; echo "The installation failed; the lines above say why." >&2; exit 1; }
	@echo "   done"
endef

$(BASE): SHELL := /bin/bash
$(BASE): $(DEPENDENCIES) | .venv/bin/python
	$(call install,raycade,.)
	@touch $@

$(TEST): SHELL := /bin/bash
$(TEST): $(DEPENDENCIES) | .venv/bin/python
	$(call install,raycade and its test tools,".[test]")
	@touch $@ $(BASE)
