# Everything runs from a virtual environment that these targets make themselves.
# PYTHON=python3.12 picks another interpreter; EXTRAS=cuda adds GPU wheels of jax.
PYTHON ?= python3
EXTRAS ?=
PROMPTS := "a red chair with armrests" "a snowman with a blue scarf"
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-slow lint quality clean

demo: $(READY)
	$(BIN)/jax3d generate $(PROMPTS) --recipe native --out out/native
	$(BIN)/jax3d generate $(PROMPTS) --recipe distil --out out/distil

test: lint
	$(BIN)/pytest -q -n 2 --dist loadfile

test-slow: $(READY)
	$(BIN)/pytest -q -m slow

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

quality: $(READY)
	$(BIN)/python benchmarks/quality.py

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "jax3d needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable ".[test$(if $(EXTRAS),$(comma)$(EXTRAS))]"
	touch $@

comma := ,

clean:
	rm -rf $(VENV) out build *.egg-info
