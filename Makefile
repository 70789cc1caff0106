# make .venv      the environment with all extras: made when it is missing, made again when it is broken
# make .venv-jax  a second one with JAX and its libraries, for fixtures and peers
# make demo       meta-trains a learned policy gradient on grid worlds; results in runs/demo
# make test       the tests, without those marked slow; make test-all runs every one
# make docs       the reference, in site/index.html; reading it needs no network
# make lint       ruff and pyright
# make fixtures   records the numbers of JAX's libraries in tests/data, which the tests compare with
# make bench      tests/benchmarks, each against its target
# make notebooks  executes the notebooks in place; NOTEBOOKS=notebooks/01_param_trees.ipynb for one
#
# PYTHON chooses the interpreter of a new environment: make .venv PYTHON=python3.12

PYTHON ?= python3
export PYTHON

BIN := .venv/bin
NOTEBOOKS ?= $(wildcard notebooks/*.ipynb)
EXTRAS := cli,gymnasium,torchrl,torchopt,test
MODULES := torch tensordict optree matplotlib rich safetensors tyro gymnasium torchrl torchopt \
           ipykernel jupyterlab nbclient nbconvert playwright mathjax numpy pdoc pyright pytest ruff paramtree losses
JAX_MODULES := jax jaxlib optax rlax flax haiku equinox

.PHONY: .venv .venv-jax demo docs test test-all lint fixtures bench notebooks

.venv:
	@.ci/venv .venv "$(MODULES)" pyproject.toml .ci/constraints.txt -- \
	    -c .ci/constraints.txt -e ".[$(EXTRAS)]"

.venv-jax:
	@.ci/venv .venv-jax "$(JAX_MODULES)" .ci/jax.txt -- -r .ci/jax.txt

demo: .venv
	$(BIN)/paramtree lpg --preset demo --out runs/demo --fresh

docs: .venv
	rm -rf site
	$(BIN)/python -m tests.docs.site site

test: .venv
	$(BIN)/python -m pytest -m "not slow"

test-all: .venv
	$(BIN)/python -m pytest

lint: .venv
	$(BIN)/python -m ruff check .
	$(BIN)/python -m pyright

fixtures: .venv-jax
	.venv-jax/bin/python tests/fixtures/rlax.py
	.venv-jax/bin/python tests/fixtures/optax.py
	.venv-jax/bin/python tests/fixtures/optax_schedules.py
	.venv-jax/bin/python tests/fixtures/flax_layers.py
	.venv-jax/bin/python tests/fixtures/sequence_layers.py

bench: .venv
	@status=0; for file in tests/benchmarks/bench_*.py; do \
	    [ -e "$$file" ] || { echo "no benchmarks yet"; break; }; \
	    $(BIN)/python "$$file" || { echo "$$file failed" >&2; status=1; }; \
	done; exit $$status

notebooks: .venv
	$(BIN)/python -m tests.notebooks $(NOTEBOOKS)
