# `make run` shows what the model can do; `make test` proves it. Both install into .venv first.
PYTHON ?= python3
PROMPT ?= a red apple
override PROMPT := $(value PROMPT)
export PROMPT
BIN := .venv/bin

run: .venv/installed
	@$(BIN)/cm3 tour -- "$$PROMPT"

test: .venv/installed
	$(BIN)/python -m pytest

test-slow: .venv/installed
	$(BIN)/python -m pytest -m slow

test-faults: .venv/installed
	$(BIN)/python -m pytest tests/faults -m faults

lint: .venv/installed
	$(BIN)/ruff check .

types: .venv/installed
	$(BIN)/pyright

demo: .venv/installed
	$(BIN)/python -m demo.app

data: .venv/installed
	$(BIN)/python -m train.build_emoji --out data/emoji

# From nothing to the embedded model. Interrupted runs continue where they were; delete runs/ to start afresh.
DEVICE ?= CPU
train-emoji: data
	$(BIN)/python -m train.image_tokenizer --config image_tokenizer_emoji --out runs/image_tokenizer
	$(BIN)/python -m train.image_tokenizer --config image_tokenizer_emoji_decoder --out runs/decoder
	$(BIN)/python -m train.tokenize_emoji --data data/emoji --image-tokenizer runs/decoder/model --out data/emoji-tokens
	$(BIN)/python -m train.lm --config lm_emoji --out runs/lm
	$(BIN)/python -m train.build_instructions --start runs/lm/model --known data/emoji-tokens --out data/emoji-instruct
	$(BIN)/python -m train.lm --config instruct --out runs/instruct start=runs/lm/model
	$(BIN)/python -m train.scorer --out runs/scorer
	$(BIN)/python -m train.evaluate --model runs/instruct/model --data data/emoji --tokens data/emoji-tokens --out runs/evaluation
	$(BIN)/python -m train.evaluate_tasks --model runs/instruct/model --data data/emoji --out runs/evaluation-tasks
	$(BIN)/python -m train.package_model --name emoji --device "$(DEVICE)"

wheel: .venv/installed
	$(BIN)/python -m build --wheel

clean:
	rm -rf .venv dist build .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv: .venv/installed
.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[demo,train,dev]'
	touch $@

.PHONY: run test test-slow test-faults lint types demo data train-emoji wheel clean .venv
