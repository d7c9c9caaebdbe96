# make setup | demo | test | test-slow | test-all | test-gpu | layouts | lint
VENV ?= .venv
EXTRAS ?= dali,dev
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3,$(shell command -v $(name))))
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: setup demo test test-slow test-all test-gpu layouts lint clean

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
