# Everything starts from a fresh clone: each target makes the virtual environment it needs.

VENV := .venv
BIN := $(VENV)/bin
PYTHON := $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# The tests run in one process more than there are processors, up to four, each file in one of them.
PYTEST := $(BIN)/pytest --numprocesses=auto --dist=loadfile --no-loadscope-reorder \
	--max-worker-restart=0

.PHONY: demo test lint check fuzz soak fleet-soak bench scaling mutate format generated clean

# Only what a demo needs: a newcomer waits for no linter and no browser.
demo: $(VENV)/.demo
	@$(BIN)/staging-fsm demo

test: $(VENV)/.installed
	@$(PYTEST)

lint: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/staging-fsm diagram --check

check: lint test

# Coverage-guided fuzzing of what reads hostile text, each target for FUZZ_SECONDS. It stops with
# an error at the end if one crashed, and says which input did it. What it finds is kept, and
# started from the next time, in FUZZ_VENV/corpus.
FUZZ_SECONDS ?= 60
FUZZ_VENV := $(VENV)/fuzz

fuzz: $(FUZZ_VENV)/.installed
	@PYTHONPATH=tests $(FUZZ_VENV)/bin/python -m fuzz.harness $(FUZZ_SECONDS) $(FUZZ_VENV)/corpus

$(FUZZ_VENV)/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "staging_fsm needs Python 3.11 or newer on the PATH"; exit 1; }
	@test -x $(FUZZ_VENV)/bin/python || $(PYTHON) -m venv $(FUZZ_VENV)
	@echo "installing into $(FUZZ_VENV) ..."
	@$(FUZZ_VENV)/bin/python -m pip install --quiet --only-binary=atheris --editable '.[fuzz]' || \
		{ echo "fuzzing needs a wheel of atheris, and there is none for this Python and system:" \
		"take Linux on x86-64 with Python 3.11, 3.12 or 3.13"; exit 1; }
	@touch $@

# Mutation testing: each small change of MODULES has to turn a test red, or is explained in
# tests/mutation/survivors.toml. A module takes minutes, all of them hours.
MODULES ?=
MUTATE_VENV := $(VENV)/mutate

mutate: $(MUTATE_VENV)/.installed
	@PYTHONPATH=tests $(MUTATE_VENV)/bin/python -m mutation.runner $(MODULES)

$(MUTATE_VENV)/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "staging_fsm needs Python 3.11 or newer on the PATH"; exit 1; }
	@test -x $(MUTATE_VENV)/bin/python || $(PYTHON) -m venv $(MUTATE_VENV)
	@echo "installing into $(MUTATE_VENV) ..."
	@$(MUTATE_VENV)/bin/python -m pip install --quiet --editable '.[test,mutate]'
	@touch $@

# The simulation for volume: SOAK_ATTEMPTS attempts in worlds full of faults, from SOAK_SEED on.
SOAK_ATTEMPTS ?= 1000000
SOAK_SEED ?= 1

soak: $(VENV)/.installed
	@$(BIN)/python tests/soak.py --attempts $(SOAK_ATTEMPTS) --seed $(SOAK_SEED)

# A real fleet under attack: workers killed and frozen, networks cut, the server restarted.
FLEET_JOBS ?= 500
FLEET_REPOSITORIES ?= 20
FLEET_FAULTS ?= 100
FLEET_SEED ?= 1

fleet-soak: $(VENV)/.installed
	@$(BIN)/python tests/fleet_soak.py --jobs $(FLEET_JOBS) --repositories $(FLEET_REPOSITORIES) \
		--faults $(FLEET_FAULTS) --seed $(FLEET_SEED)

# What the runner costs, next to its peers, which get an environment of their own; PostgreSQL is
# started and stopped by the benchmark where there is one. SECTIONS chooses; all takes long.
BENCH_VENV := $(VENV)/bench
SECTIONS ?=

bench: $(VENV)/.installed $(BENCH_VENV)/.installed
	@$(BIN)/python -m benchmarks.bench $(SECTIONS)
	@$(BIN)/pytest --rewrite --quiet tests/test_docs.py -k "generated and (performance or scaling)"

$(BENCH_VENV)/.installed: benchmarks/requirements.txt
	@test -x $(BENCH_VENV)/bin/python || $(PYTHON) -m venv $(BENCH_VENV)
	@echo "installing into $(BENCH_VENV) ..."
	@PIP_CONSTRAINT= $(BENCH_VENV)/bin/python -m pip install --quiet --requirement benchmarks/requirements.txt
	@touch $@

# Fleets of up to a million attempts a day, simulated from a seed.
scaling: $(VENV)/.installed
	@$(BIN)/python -m benchmarks.scaling
	@$(BIN)/pytest --rewrite --quiet tests/test_docs.py -k "generated and scaling"

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Whatever is generated from the table and from the declared settings.
generated: $(VENV)/.installed
	$(BIN)/staging-fsm diagram
	$(BIN)/staging-fsm config --env-example > .env.example
	$(BIN)/pytest --rewrite --quiet tests/test_docs.py tests/test_specification.py -k "generated or current"

$(VENV)/.demo: EXTRAS := demo
$(VENV)/.installed: EXTRAS := demo,test,check

$(VENV)/.demo $(VENV)/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "staging_fsm needs Python 3.11 or newer on the PATH"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS)]'
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .hypothesis build dist
