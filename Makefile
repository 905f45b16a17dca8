# make train, make test, make test-fast, make check, make schema: each sets up .venv first, and only when the
# requirements changed.
PYTHON ?= python3
VENV   ?= .venv
CONFIG ?= config.json
ARGS   ?=
NPROC  ?= 1

BIN   = $(VENV)/bin
READY = $(VENV)/.ready

# one process more than there are cores, and whole files to each, in tests/conftest.py's order: what a file prepares is
# prepared once. One process alone: ARGS="-n 0 --pdb"
PYTEST = $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

.PHONY: train test test-fast test-lowest test-accelerator test-minimal check schema bench clean

# make train NPROC=2: two processes of this machine share each batch
LAUNCH = $(if $(filter-out 1,$(NPROC)),$(BIN)/torchrun --standalone --nproc-per-node $(NPROC),$(BIN)/python)

train: $(READY)
	$(LAUNCH) train.py -c $(CONFIG) $(ARGS)

test: $(READY)
	$(PYTEST) $(ARGS)

# without the tests that take about a second or more each. What their files prepare is quickly done: a process that has
# nothing left takes tests of the others
test-fast: $(READY)
	$(PYTEST) --dist worksteal -m "not slow" $(ARGS)

LOWEST ?= .venv-lowest
# the tests with the lowest versions that the requirements allow, in an environment of about 7 GB beside .venv
test-lowest:
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt -c dev/constraints-lowest.txt
	$(LOWEST)/bin/python -m pytest $(ARGS)

# the tests on an emulated accelerator, which is compiled once and needs a C++ compiler; those of accelerators first.
# pytest ends with status 5 if ARGS selects no test
test-accelerator: $(READY)
	$(BIN)/python -m dev.accelerator $(PYTEST) --dist load tests/accelerator $(ARGS) || test $$? -eq 5
	$(BIN)/python -m dev.accelerator $(PYTEST) --ignore tests/accelerator $(ARGS)

# those of a minimal project, made for the purpose, with its formatting, lint and types
test-minimal: $(READY)
	$(BIN)/python -m dev.minimal $(ARGS)

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# config.schema.json, by which an editor completes and checks configs, and the tables of keys in docs/ and README.md
schema: $(READY)
	$(BIN)/python -m extras.schema

# how fast training is beside loops written by hand: make bench ARGS="--data-dir data"
bench: $(READY)
	$(BIN)/python -m dev.bench $(ARGS)

$(READY): requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

clean:
	rm -rf $(VENV) $(LOWEST) .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
