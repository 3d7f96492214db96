# demo: install, run the main job on real data, say what it achieved.   test: the tests.
# lint: style and types.   zoo: every model of bench/zoo.txt, hours; goes on where it was stopped.
# clean: remove what these made.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# One thread per worker: two workers share two cores, and sums come out in the same order.
THREADS := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: demo test lint zoo clean

demo: $(STAMP)
	@$(BIN)/edgeprune run samples/fashion/recipe.toml --out build/fashion

test: $(STAMP)
	@$(THREADS) $(BIN)/python -m pytest -q -n 2 --dist worksteal

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy --strict edgeprune

zoo: $(STAMP)
	@$(BIN)/python bench/zoo.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is as new as what it was installed from; the package itself is editable.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[torch,dev]"
	@touch $@
