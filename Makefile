# Each needs nothing but Python 3.11 or newer, and installs into .venv.
PYTHON ?= python3
BIN = .venv/bin
SPHINX = $(BIN)/sphinx-build --quiet --fresh-env --write-all --fail-on-warning --keep-going docs build/docs

.PHONY: demo demo-control demo-emoji demo-text docs nightly serve test

demo: .venv/demo
	$(BIN)/python -m demos.digits

demo-text: .venv/demo-text
	$(BIN)/python -m demos.scenes

demo-control: .venv/demo-text
	$(BIN)/python -m demos.control

demo-emoji: .venv/demo-emoji
	$(BIN)/python -m demos.emoji

# Warnings, such as broken links, are errors.
docs: .venv/docs
	$(SPHINX)

serve: demo/generator/checkpoints .venv/serve
	$(BIN)/python -m llamagen_jax.serve --generator demo/generator --port 0

demo/generator/checkpoints:
	@echo "make serve shows the digits: run make demo first" >&2; exit 1

test: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright --warnings
	$(SPHINX)
	$(BIN)/pytest --numprocesses auto --dist worksteal

nightly: .venv/test
	$(BIN)/pytest -m slow
	$(MAKE) demo demo-text

# One stamp per extra, renewed when the requirements change.
.venv/demo: EXTRA = demo
.venv/demo-emoji: EXTRA = demo,text
.venv/demo-text: EXTRA = demo,prepare,text
.venv/docs: EXTRA = docs
.venv/serve: EXTRA = serve
.venv/test: EXTRA = test
.venv/demo .venv/demo-emoji .venv/demo-text .venv/docs .venv/serve .venv/test: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable ".[$(EXTRA)]"
	touch $@
