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

data: $(VENV)/installed
	$(BIN)/python -m train.build_emoji --out data/emoji

# From nothing to the embedded model. Interrupted runs continue where they were; delete runs/ to start afresh.
DEVICE ?= CPU
train-emoji: data
	$(BIN)/python -m train.image_tokenizer --config image_tokenizer_emoji --out runs/image_tokenizer
	$(BIN)/python -m train.build_scenes --out data/emoji-scenes
	$(BIN)/python -m train.image_tokenizer --config image_tokenizer_emoji_decoder --out runs/decoder
	$(BIN)/python -m train.tokenize_emoji --config tokenize_emoji --out data/emoji-tokens
	$(BIN)/python -m train.lm --config lm_emoji --out runs/lm
	$(BIN)/python -m train.build_instructions --config build_instructions --start runs/lm/model --known data/emoji-tokens \
		--out data/emoji-instruct
	$(BIN)/python -m train.lm --config instruct --out runs/instruct
	for seed in 1 2 3; do \
		$(BIN)/python -m train.build_instructions --config build_instructions --start runs/lm/model \
			--known data/emoji-tokens --out data/emoji-instruct-$$seed seed=$$seed && \
		$(BIN)/python -m train.lm --config instruct --out runs/instruct-$$seed start=runs/instruct/model \
			data.folder=data/emoji-instruct-$$seed steps=3000 seed=$$seed || exit 1; \
	done
	$(BIN)/python -m train.merge runs/instruct-1/model runs/instruct-2/model runs/instruct-3/model runs/lm/model \
		--weights 0.28,0.28,0.29,0.15 --out runs/drawing
	$(BIN)/python -m train.tokenize_emoji --config tokenize_emoji --start runs/drawing --out data/emoji-tokens-more \
		distorted=8 extra=40
	for seed in 4 5; do \
		$(BIN)/python -m train.build_instructions --config build_instructions --start runs/drawing \
			--known data/emoji-tokens-more --out data/emoji-instruct-$$seed seed=$$seed documents=24000 edits=0.58 \
			known=0.64 drawn=0.4 && \
		$(BIN)/python -m train.lm --config instruct --out runs/instruct-$$seed start=runs/drawing \
			data.folder=data/emoji-instruct-$$seed steps=1900 seed=$$seed || exit 1; \
	done
	$(BIN)/python -m train.merge runs/drawing runs/instruct-4/model runs/instruct-5/model \
		--weights 0.4,0.3,0.3 --out runs/merged
	$(BIN)/python -m train.scorer --out runs/scorer model.embedding_size=32
	$(BIN)/python -m train.evaluate concepts --model runs/merged --data data/emoji --tokens data/emoji-tokens \
		--out runs/evaluation --temperature 0.5 --top-p 0.9
	$(BIN)/python -m train.evaluate_tasks --model runs/merged --data data/emoji --out runs/evaluation-tasks
	$(BIN)/python -m train.package_model --name emoji --device "$(DEVICE)"

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

.PHONY: run test ci test-slow test-browser test-faults test-newest test-oldest format format-check lint types docs demo data \
	screenshots train-emoji wheel clean .venv newest oldest bump
