# `make demo` and `make test` need Python 3.10+ and make, nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
NOTEBOOKS ?= force

# The files whose numbers depend most on how a processor rounds.
DELICATE = tests/adversarial tests/training tests/defences/test_defences.py tests/runtime/test_folding.py \
	tests/runtime/test_small_maps.py

.PHONY: demo test delicate lint smoke docs matrix kills

demo: $(VENV)/installed
	$(BIN)/art-aft demo

test: $(VENV)/installed
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile
	$(BIN)/python -m pytest --doctest-modules art_aft

# Once more, with the instruction set of an older processor.
delicate: $(VENV)/installed
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX2 \
		$(BIN)/python -m pytest --numprocesses auto --dist loadfile $(DELICATE)

smoke: $(VENV)/installed
	rm -rf build/smoke
	$(BIN)/art-aft reproduce all --scale smoke --store build/smoke/grid --output build/smoke/results --jobs 2 --quiet

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The pages, as build/docs/index.html; a warning is an error. The notebooks and the tutorial are executed, which
# `make docs NOTEBOOKS=off` leaves out.
docs: $(VENV)/docs
	rm -rf build/docs docs/generated
	$(BIN)/sphinx-build -q -n -W --keep-going -j 2 -D nb_execution_mode=$(NOTEBOOKS) docs build/docs

# The tests with the lowest and the newest versions of everything. Each environment may take 7 GB for a while.
matrix:
	.ci/matrix

# Kills commands at 50 random moments and at moves of files, and runs each again to the end.
kills: $(VENV)/installed
	$(BIN)/python tests/kills.py

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[plots,dev]"
	touch $@

$(VENV)/docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	touch $@
