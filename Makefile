# Everything here works on a fresh machine with Python 3.11 or newer, its venv module, and make.
# The environment is made once, in .venv, and again when setup.cfg changes.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
JOBS   ?= 2
WORKERS ?= 3# of `make unit`: half of the tests wait most of the time
SEEDS  ?= 30
MINUTES ?= 1
SEED   ?=
MANAGER ?= delta
SCENE  ?=
FEATURES ?=
ARGS   ?=

unexport PYTHONDONTWRITEBYTECODE# containers set it: each of the hundreds of processes of the tests would compile all modules again

.DEFAULT_GOAL := help
.PHONY: help venv install demo check test lint unit real faults sim simall scale fuzz bench docs wheel clean

help:  ## show this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | sort | awk -F '\t' '{ printf "  make %-10s %s\n", $$1, $$2 }'

$(STAMP): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Caterwaul needs Python 3.11 or newer: make PYTHON=python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(STAMP)

venv: $(STAMP)  ## make the virtual environment .venv with everything for development

install:  ## install Caterwaul for the Python of PYTHON=
	$(PYTHON) -m pip install .

demo: $(STAMP)  ## run three nodes behind a balancer and print the address of the page
	@$(BIN)/caterwaul demo

check: $(STAMP)  ## run the story of the demo without a person: kill, pause, count what was lost
	@$(BIN)/caterwaul demo --check

test: lint unit sim simall  ## everything that has to pass: lint, all tests, fixed seeds of the simulator for each manager

lint: $(STAMP)  ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p caterwaul

unit: $(STAMP)  ## all tests but the simulator's seeds and the faults
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

real: $(STAMP)  ## only the tests with processes, sockets and multicast
	$(BIN)/python -m pytest tests/real

faults: $(STAMP)  ## break networks, clocks and processes of real nodes (docs/faults.md): six to seven minutes, needs root
	$(BIN)/python -m pytest tests/faults -n $(JOBS)

sim: $(STAMP)  ## the simulator: SEEDS=1000 for many, SEED=123 to replay one, MANAGER=backup or partitioned, SCENE=rolling for a story, FEATURES=1 for locks, new ids and single sign-on in the odd seeds too
	$(BIN)/python -m tests.sim --manager $(MANAGER) $(if $(SCENE),--scene $(SCENE)) $(if $(FEATURES),--features) $(if $(SEED),--seed $(SEED),--seeds $(SEEDS))

simall: $(STAMP)  ## a few fixed seeds of the simulator for the managers besides delta
	$(BIN)/python -m tests.sim --manager partitioned --seeds 8
	$(BIN)/python -m tests.sim --manager backup --seeds 8 --first 25

fuzz: $(STAMP)  ## hostile bytes against every decoder for MINUTES=1, guided by coverage, and the property tests ten times as long
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,fuzz]' || echo "no atheris: going on without coverage" >&2
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES) --jobs $(JOBS)
	CATERWAUL_FUZZ_EXAMPLES=20000 $(BIN)/python -m pytest tests/fuzz -n $(JOBS)

bench: $(STAMP)  ## measure, and print a table; ARGS="--json FILE" and others: see ARGS=--help
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,bench]' || echo "no Flask-Session or redis: going on without what is measured beside them" >&2
	$(BIN)/python -m benchmarks $(ARGS)

scale: $(STAMP)  ## simulate 100, 300 and 1000 members, and print what each does a second; ARGS=--help
	$(BIN)/python -m tests.sim.scale $(ARGS)

docs: $(STAMP)  ## write docs/configuration.md from the settings
	$(BIN)/caterwaul config --markdown > docs/configuration.md

wheel: $(STAMP)  ## build the wheel into dist/
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:  ## remove what was built, the virtual environment with it
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .fuzz .demo .upstream
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
