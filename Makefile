# Each needs nothing but Python 3.11 or newer, and installs into .venv.
PYTHON ?= python3
BIN = .venv/bin
SPHINX = $(BIN)/sphinx-build --quiet --fresh-env --write-all --fail-on-warning --keep-going docs build/docs

.PHONY: demo demo-control demo-emoji demo-holes demo-text docs nightly serve test

demo: .venv/demo
	$(BIN)/python -m demos.digits

demo-text: .venv/demo-text
	$(BIN)/python -m demos.scenes

demo-control: .venv/demo-text
	$(BIN)/python -m demos.control

demo-holes: .venv/demo
	$(BIN)/python -m demos.holes

demo-emoji: .venv/demo-emoji
	$(BIN)/python -m demos.emoji

# Warnings, such as broken links, are errors.
docs: .venv/docs
	$(SPHINX)

# Of another demo: make serve DEMO=demo_emoji
DEMO = demo
serve: $(DEMO)/generator/checkpoints .venv/serve
	$(BIN)/python -m llamagen_jax.serve --generator $(DEMO)/generator --port 0

$(DEMO)/generator/checkpoints:
	@echo "make serve shows what a demo trained: run make $(subst _,-,$(DEMO)) first" >&2; exit 1

test: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright --warnings
	$(SPHINX)
	$(BIN)/pytest --numprocesses auto --dist worksteal

nightly: .venv/test
	$(BIN)/pytest -m slow
	$(MAKE) demo demo-text demo-control demo-holes demo-emoji

# One stamp per extra, renewed when the requirements change.
.venv/demo: EXTRA = demo
.venv/demo-emoji: EXTRA = demo,text
.venv/demo-text: EXTRA = demo,prepare,text
.venv/docs: EXTRA = docs
.venv/serve: EXTRA = serve,text
.venv/test: EXTRA = test
.venv/demo .venv/demo-emoji .venv/demo-text .venv/docs .venv/serve .venv/test: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable ".[$(EXTRA)]"
	touch $@
