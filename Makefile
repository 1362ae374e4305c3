# `make demo` and `make test` need Python 3.10+ and make, nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test lint smoke

demo: $(VENV)/installed
	$(BIN)/art-aft demo

test: $(VENV)/installed
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

smoke: $(VENV)/installed
	rm -rf build/smoke
	$(BIN)/art-aft reproduce all --scale smoke --store build/smoke/grid --output build/smoke/results --jobs 2 --quiet

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[plots,dev]"
	touch $@
