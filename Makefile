# Every target is sufficient alone in a fresh clone: it makes the environment, installs what it needs, and runs.
# Another interpreter: make PYTHON=/path/to/python3.12 quickstart

VENV := .venv
PY := $(VENV)/bin/python
PYTHON := python3
PROMPT := examples/prompt.py.txt
CHATS := datasets/chitchat_dataset/dataset.json
# Environments with Hugging Face's library: beside our own packages, and the last one that reads GPT-Neo's checkpoints.
PARITY := .venv-parity
OLD_PARITY := .venv-parity-4
LM_EVAL := .venv-lm-eval

.PHONY: help quickstart chat-quickstart test test-models test-slow parity lm-eval lint format docs site clean

help:
	@echo "make quickstart   train a small GPT on Python's standard library, evaluate it, and let it write"
	@echo "make chat-quickstart  train a small GPT on real conversations, evaluate it, and talk with it"
	@echo "make test         the fast tests"
	@echo "make test-models  the slow tests of options, kernels and commands, which .ci/run runs too"
	@echo "make test-slow    the other slow tests: training, layouts, combinations, processes, networks, servers and a browser"
	@echo "make parity       compare with Hugging Face's models of every family, in environments of their own"
	@echo "make lm-eval      make an environment with lm-evaluation-harness, for benchmarks/evaluation.py"
	@echo "make lint         check style, layout and the direction of imports"
	@echo "make format       lay the code out"
	@echo "make docs         write docs/configuration.md and docs/assets/rooms.svg"
	@echo "make site         build the documentation site into site/"
	@echo "make clean        remove the environments and the caches; data sets and runs stay"

quickstart: $(VENV)/.run-packages
	$(PY) main.py --model quickstart --check_dataset
	$(PY) main.py --model quickstart --steps_per_checkpoint 300
	$(PY) main.py --model quickstart --eval
	$(PY) main.py --model quickstart --predict --prompt $(PROMPT)

chat-quickstart: $(VENV)/.run-packages $(CHATS)
	$(PY) main.py --model chat_quickstart --check_dataset
	$(PY) main.py --model chat_quickstart --steps_per_checkpoint 2000
	$(PY) main.py --model chat_quickstart --eval
	$(PY) main.py --model chat_quickstart --chat

test: $(VENV)/.dev-packages
	$(PY) -m pytest -q -m "not slow" -n auto --maxprocesses 4 --dist worksteal

# XLA keeps what it compiles until a process has no memory maps left, so slow tests run in rounds of processes. What
# test-models leaves to test-slow would bring .ci/run to its ninety minutes on slow cores.
test-models: $(VENV)/.dev-packages
	$(PY) -m pytest -q -m "slow and not processes" -n auto --maxprocesses 4 --dist worksteal tests/models
	$(PY) -m pytest -q -m "slow and not processes" -n auto --maxprocesses 4 --dist worksteal --ignore tests/models \
	  --ignore tests/runtime --ignore tests/test_combinations.py

test-slow: $(VENV)/.dev-packages
	$(PY) -m pytest -q -m "slow and processes" -n auto --maxprocesses 4 --dist worksteal
	$(PY) -m pytest -q -m "slow and not processes" -n auto --maxprocesses 4 --dist worksteal tests/runtime
	for quarter in 1 2 3 4; do \
	  $(PY) -m pytest -q -m slow -n auto --maxprocesses 4 tests/test_combinations.py -k quarter$$quarter- || exit 1; \
	done

parity: $(PARITY)/.parity-packages $(OLD_PARITY)/.parity-packages
	OLD_TRANSFORMERS=$(CURDIR)/$(OLD_PARITY)/bin/python $(PARITY)/bin/python -m pytest -q tests/parity.py tests/parity_generation.py \
	  tests/parity_families.py tests/parity_peft.py tests/parity_reranking.py tests/runtime/checkpoint/test_weight_files.py tests/runtime/checkpoint/test_state_dict.py \
	  tests/test_from_dialogpt_training.py

lm-eval: $(LM_EVAL)/.lm-eval-packages

lint: $(VENV)/.dev-packages
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/lint-imports --no-logo --no-cache

format: $(VENV)/.dev-packages
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

docs: $(VENV)/.run-packages
	$(PY) docs/generate_configuration.py
	$(PY) docs/draw_rooms.py

site: $(VENV)/.dev-packages
	$(VENV)/bin/zensical build --clean --strict

clean:
	rm -rf $(VENV) $(PARITY) $(OLD_PARITY) $(LM_EVAL) .pytest_cache .ruff_cache .hypothesis .cache site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment. A stamp file stands for each finished step, so that the next run starts at once.

USABLE := import ensurepip, sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))
PIP := $(PY) -m pip -qq --disable-pip-version-check install

$(VENV)/.created:
	@for python in $(PYTHON) python3.13 python3.12 python3.11 python3.10; do \
	  if $$python -c '$(USABLE)' 2>/dev/null; then \
	    echo "Making $(VENV) with $$($$python --version)."; \
	    $$python -m venv $(VENV) && touch $@; exit; \
	  fi; \
	done; \
	echo "No usable Python found: Neomesh needs Python 3.10 to 3.13 with its venv module." >&2; \
	echo "$(PYTHON) is: $$($(PYTHON) --version 2>&1 | head -n 1)." >&2; \
	echo "Install one (on Debian and Ubuntu: apt install python3-venv), or name one: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; \
	exit 1

$(VENV)/.run-packages: requirements.txt | $(VENV)/.created
	@echo "Installing the packages of requirements.txt into $(VENV); the first time this takes a minute or two."
	@$(PIP) -r requirements.txt
	@touch $@

$(CHATS): | $(VENV)/.created
	@echo "Fetching the conversations of the chitchat-dataset (MIT license) into datasets/."
	@$(PIP) --no-deps --target datasets chitchat-dataset==0.9.0
	@touch $@

$(VENV)/.dev-packages: requirements-dev.txt requirements-serve.txt requirements-tasks.txt $(VENV)/.run-packages
	@echo "Installing the packages of requirements-dev.txt into $(VENV)."
	@$(PIP) -r requirements-dev.txt
	@touch $@

# On Linux PyPI's torch brings CUDA along; PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu gives a smaller one.
$(PARITY)/.parity-packages: requirements.txt requirements-serve.txt requirements-tasks.txt requirements-dev.txt
	@$(MAKE) --no-print-directory VENV=$(PARITY) $(PARITY)/.dev-packages
	@echo "Installing torch, transformers 5 and peft into $(PARITY)."
	@$(PARITY)/bin/python -m pip -qq --disable-pip-version-check install torch==2.13.0 transformers==5.23.0 peft==0.21.2
	@touch $@

$(OLD_PARITY)/.parity-packages:
	@$(MAKE) --no-print-directory VENV=$(OLD_PARITY) $(OLD_PARITY)/.created
	@echo "Installing torch, transformers 4.57.1 and TensorFlow into $(OLD_PARITY)."
	@$(OLD_PARITY)/bin/python -m pip -qq --disable-pip-version-check install \
	  torch==2.13.0 transformers==4.57.1 tensorflow==2.21.0
	@touch $@

$(LM_EVAL)/.lm-eval-packages:
	@$(MAKE) --no-print-directory VENV=$(LM_EVAL) $(LM_EVAL)/.created
	@echo "Installing lm-evaluation-harness, torch and transformers 5 into $(LM_EVAL)."
	@$(LM_EVAL)/bin/python -m pip -qq --disable-pip-version-check install \
	  "lm-eval[api,hf]==0.4.13" torch==2.13.0 transformers==5.23.0
	@touch $@
