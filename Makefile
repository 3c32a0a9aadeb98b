# Every target sets up what it needs: a virtual environment in .venv with the locked
# dependencies. `make PYTHON=python3.12 …` chooses another interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo test check bench bench-secagg bench-he bench-privacy bench-audits \
	bench-audit-power bench-membership bench-papers clean

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $(READY)

demo: $(READY)
	$(BIN)/cloister demo

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m benchmarks

bench-secagg: $(READY)
	$(BIN)/python -m benchmarks secagg

bench-he: $(READY)
	$(BIN)/python -m benchmarks he

bench-privacy: $(READY)
	$(BIN)/python -m benchmarks accounting lower_bounds dpsgd_speed engine_choice \
		discrete_noise multiplicity private_federation central_images reference

bench-audit-power: $(READY)
	$(BIN)/python -m benchmarks audit_power

bench-papers: $(READY)
	$(BIN)/python -m benchmarks papers_bytes papers
	$(BIN)/python -m benchmarks.papers_table

bench-membership: $(READY)
	$(BIN)/python -m benchmarks membership

bench-audits: $(READY)
	$(BIN)/python -m benchmarks audits

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build *.egg-info
