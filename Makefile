# make setup | demo | test | test-slow | test-all | test-gpu | test-vllm | layouts | lint
VENV ?= .venv
EXTRAS ?= dali,dev
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3,$(shell command -v $(name))))
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: setup demo test test-slow test-all test-gpu test-vllm layouts lint clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing megatron-glmv[$(EXTRAS)] into $(VENV) (about 2 GB, one or two minutes)"
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

demo: setup
	$(BIN)/python tools/demo.py

test: setup
	$(BIN)/python -m pytest -m "not slow and not gpu"

test-slow: setup
	$(BIN)/python -m pytest -m "slow and not gpu"

test-all: setup
	$(BIN)/python -m pytest -m "not gpu"

test-gpu: setup
	$(BIN)/python -m pytest -m gpu

VLLM_VENV ?= .cache/vllm
test-vllm: setup # a real vLLM server on CPU, in an environment of its own (3.5 GB) that is installed once
	@test -e $(VLLM_VENV)/.installed || sh tests/vllm/install.sh $(VLLM_VENV) $(PYTHON)
	GLMV_VLLM_PYTHON=$(abspath $(VLLM_VENV))/bin/python $(BIN)/python -m pytest -q -s tests/vllm

layouts: setup # the table of layouts: loss and gradients against one process, what each rank holds and sends
	$(BIN)/python -m pytest -q tests/dist/test_layout_table.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/shellcheck slurm/job.sbatch slurm/rank.sh .ci/run
	$(BIN)/hadolint containers/Dockerfile

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
