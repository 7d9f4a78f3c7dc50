# Everything starts from a fresh clone: each target makes the virtual environment it needs.

VENV := .venv
BIN := $(VENV)/bin
PYTHON := $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test check format generated clean

demo: $(VENV)/.installed
	@$(BIN)/staging-fsm demo

test: $(VENV)/.installed
	@$(BIN)/pytest

check: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/staging-fsm diagram --check
	$(BIN)/pytest

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Whatever is generated from the table and from the declared settings.
generated: $(VENV)/.installed
	$(BIN)/staging-fsm diagram
	$(BIN)/staging-fsm config --env-example > .env.example

$(VENV)/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "staging_fsm needs Python 3.11 or newer on the PATH"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --editable '.[demo,test,check]'
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .hypothesis build dist
