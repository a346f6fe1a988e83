# `make demo` and `make test` need nothing but Python 3.11 or newer; both install into .venv.
PYTHON ?= python3
BIN = .venv/bin

.PHONY: demo test

demo: .venv/demo
	$(BIN)/python demo.py

test: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pytest --numprocesses auto --dist worksteal

# One stamp per extra, renewed when the requirements change.
.venv/demo: EXTRA = eval
.venv/test: EXTRA = test
.venv/demo .venv/test: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable ".[$(EXTRA)]"
	touch $@
