# `make run` shows what the model can do; `make test` proves it. Both install into .venv first: exactly the releases of
# constraints.txt, which the tests passed with.
PYTHON ?= python3
PROMPT ?= a red apple
override PROMPT := $(value PROMPT)
export PROMPT
VENV := .venv
BIN := $(VENV)/bin

run: $(VENV)/installed
	@$(BIN)/cm3 tour --best-of 4 -- "$$PROMPT"

# A process for each core. The tests of a file stay together, for they share what is slow to make.
test: $(VENV)/installed
	$(BIN)/python -m pytest -n auto --dist loadfile

# Each by itself, so that the first that fails is what the last lines tell of.
ci:
	$(MAKE) --no-print-directory format-check
	$(MAKE) --no-print-directory lint
	$(MAKE) --no-print-directory types
	$(MAKE) --no-print-directory test

test-slow: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group slow
	$(BIN)/python -m pytest -m slow

# The page in Debian's or another Chromium (CHROMIUM=/usr/bin/chromium); it is not downloaded.
test-browser: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group browser
	$(BIN)/python -m pytest tests/browser -m browser

# docs/page-*.png, in the same browser.
screenshots: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group browser
	PYTHONPATH=tests/helpers $(BIN)/python -m tests.browser.screenshots docs

test-faults: $(VENV)/installed
	$(BIN)/python -m pytest tests/faults -m faults

# With the newest releases that pyproject.toml allows, and with the oldest: its floors.
test-newest: newest
	$(MAKE) --no-print-directory test VENV=.venv-newest

test-oldest: oldest
	$(MAKE) --no-print-directory test VENV=.venv-oldest

format: $(VENV)/installed
	$(BIN)/ruff format .

format-check: $(VENV)/installed
	$(BIN)/ruff format --check .

lint: $(VENV)/installed
	$(BIN)/ruff check .

types: $(VENV)/installed
	$(BIN)/pyright --pythonpath $(BIN)/python

# The documentation and the API reference as a site, in site/. It has an environment of its own: nothing is imported.
docs: .venv-docs/installed
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build
	@echo site/index.html

.venv-docs/installed: pyproject.toml
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python $(PIP) --upgrade 'pip>=25.3'
	.venv-docs/bin/python $(PIP) --group docs
	touch $@

demo: $(VENV)/installed
	$(BIN)/python -m demo.app

# From nothing to the embedded model, about 8 h on two cores with bf16. Interrupted runs continue where they were.
embedded: $(VENV)/installed
	PYTHON=$(BIN)/python train/recipes/emoji/make.sh

wheel: $(VENV)/installed
	$(BIN)/python -m build --wheel

clean:
	rm -rf .venv .venv-docs .venv-newest .venv-oldest site dist build .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# $(call install,FOLDER,CONSTRAINTS): a virtual environment with all that the checkout needs. pip comes first: the one
# that Python brings may not know dependency groups (pip 25.1) and build constraints (25.3) yet.
PIP := -m pip install --quiet --disable-pip-version-check
define install
	$(PYTHON) -m venv $(1)
	$(1)/bin/python $(PIP) $(if $(2),--constraint $(2)) --upgrade 'pip>=25.3'
	$(1)/bin/python $(PIP) $(if $(2),--constraint $(2) --build-constraint $(2)) --editable . --group dev
	touch $(1)/installed
endef

.venv: .venv/installed
.venv/installed: pyproject.toml constraints.txt
	$(call install,.venv,constraints.txt)

newest:
	rm -rf .venv-newest
	$(call install,.venv-newest)

# PyTorch's floor, 2.11, has no CPU build on PyPI for Linux: TORCH=2.11.0 tests it where one is at hand or CUDA fits.
TORCH ?= $(shell sed -n 's/^torch==//p' constraints.txt)
oldest:
	rm -rf .venv-oldest
	$(PYTHON) -m venv .venv-oldest
	$(PYTHON) .ci/floors.py torch==$(TORCH) > .venv-oldest/floors.txt
	$(call install,.venv-oldest,.venv-oldest/floors.txt)

# Take up the newest releases: constraints.txt is rewritten only when everything passes with them.
bump: newest
	$(MAKE) --no-print-directory format-check lint types test VENV=.venv-newest
	.venv-newest/bin/python -m pip freeze --all --exclude-editable > .venv-newest/frozen.txt
	echo "# The releases that the tests passed with; \`make bump\` writes this file." > constraints.txt
	sed 's/+[[:alnum:].]*$$//' .venv-newest/frozen.txt >> constraints.txt  # torch's "+cpu" is not everywhere

.PHONY: run test ci test-slow test-browser test-faults test-newest test-oldest format format-check lint types docs demo \
	screenshots embedded wheel clean .venv newest oldest bump
