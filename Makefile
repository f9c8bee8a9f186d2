# Each target sets up .venv by itself, once: again only when pyproject.toml has changed.
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= 1

.PHONY: demo test check bench bench-tasks chaos clean

demo: .venv/installed
	$(BIN)/luban demo

# Slow tests wait for processes most of their time, so half of them runs beside the others, to be read after those.
BESIDE := tests/cluster tests/chaos tests/trainer

test: .venv/installed-test
	@$(BIN)/python -m pytest -m slow $(BESIDE) >.beside.log 2>&1 & beside=$$!; failed=0; \
	$(BIN)/python -m pytest -m "not slow" || failed=1; \
	$(BIN)/python -m pytest -m slow $(addprefix --ignore=,$(BESIDE)) || failed=1; \
	wait $$beside || failed=1; cat .beside.log; \
	exit $$failed

check: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: .venv/installed-test
	$(BIN)/python -m tests.bench

# Needs LUBAN_CORPORA; called again it goes on where it was.
bench-tasks: .venv/installed-test
	$(BIN)/python -m tests.bench.tasks

# An hour at most; called again it goes on where it was. Its runs lie in chaos/.
chaos: .venv/installed-test
	$(BIN)/python -m tests.chaos.runs

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .beside.log
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13) and "Luban needs Python 3.11 to 3.13: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv

# torch comes first and pinned: another package's looser wish would bring gigabytes of CUDA.
.venv/installed: pyproject.toml | .venv/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	touch $@

# What only the system's package manager has; says what to do where it may not install.
.venv/installed-system: tests/slurm_testbed/install.sh | .venv/bin/python
	tests/slurm_testbed/install.sh
	touch $@

.venv/installed-test: .venv/installed .venv/installed-system
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test,check]'
	touch $@
