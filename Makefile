# make run: install and run the main job.  make test: install and run the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LIMIT ?= 8
# CPU only: make install TORCH_INDEX="--extra-index-url https://download.pytorch.org/whl/cpu"
TORCH_INDEX ?=
ifndef SEMBENCH_DATA
ifneq ($(wildcard ../shared/data),)
export SEMBENCH_DATA := $(abspath ../shared/data)
endif
endif

.PHONY: help install run full test check format clean
help:
	@echo "make install   make $(VENV) with everything, versions as tested"
	@echo "make run       real fast scans: a table and a picture of input, gaussian and semfm (LIMIT=$(LIMIT) pairs)"
	@echo "make full      the classical methods on all 100 fields of s2s, controls beside"
	@echo "make test      the tests"
	@echo "make check     ruff and mypy"
	@echo "make format    format the code"

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt $(TORCH_INDEX) torch torchvision
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev,all]"
	@$(BIN)/python -c "import cv2" 2>/dev/null || $(BIN)/pip install --quiet --force-reinstall --no-deps -c constraints.txt opencv-python-headless
	@touch $@
	@echo "installed: source $(VENV)/bin/activate, then sembench --help"

run: install
	$(BIN)/sembench run --restorer input,gaussian,semfm --protocol s2r --limit $(LIMIT) --skip-unavailable --no-fit

full: install
	$(BIN)/sembench run --protocol s2s

test: install
	$(BIN)/python -m pytest

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
