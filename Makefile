# make setup   .venv with everything in it, from the locks
# make demo    the embedded default to the end: Table 1 of a tiny LLaVA, its figure and its page
# make test    linters and tests
# make plan    what `make demo` would still run
#
# On a machine with a GPU: make setup TORCH="torch==2.13.0" installs the CUDA build where pip's index has one.

PYTHON ?= python3
CORES ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# One OpenMP thread per process: with two on two cores a step takes many times longer. Jobs run in parallel instead.
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1
export DS_ACCELERATOR ?= cpu
export PYTHONUNBUFFERED := 1
# Empty means unset: every job starts a Python, which should find its modules compiled.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup demo plan test lint unit clean

setup: $(STAMP)

# uv installs the locked packages in seconds; pip does the same where uv cannot.
$(STAMP): envs/requirements-dev.lock envs/requirements-slurm.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed, $(PYTHON) is " + sys.version.split()[0])'
	@echo "== Making $(VENV) (about two minutes without cached packages)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9 || echo "uv is not to be had: pip does it, slower"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --require-hashes -r envs/requirements-dev.lock \
		|| $(BIN)/python -m pip install --quiet --no-deps --require-hashes -r envs/requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(BIN)/uv pip install --quiet --no-deps --require-hashes --target $(VENV)/lib/snakemake-slurm -r envs/requirements-slurm.lock \
		|| $(BIN)/python -m pip install --quiet --no-deps --require-hashes --target $(VENV)/lib/snakemake-slurm -r envs/requirements-slurm.lock
	@touch $@

demo: setup
	$(BIN)/snakemake --cores $(CORES)
	@echo "== Table: results/tables/demo.md   Figure: results/figures/demo.png   Page: results/report/demo.html"
	@cat results/tables/demo.md

plan: setup
	$(BIN)/snakemake --dry-run --quiet rules --cores $(CORES)

test: setup lint unit

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/snakemake --lint

unit: setup
	$(BIN)/pytest -n $(CORES) --dist loadfile --durations 12

clean:
	rm -rf $(VENV) results .snakemake
