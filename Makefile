# `make check` is everything that CI runs, and all of the slow cases, of which CI takes a few.
# It uses the python on PATH, or the one given: make check PYTHON=.venv/bin/python
PYTHON ?= python3
export JAX_PLATFORMS ?= cpu

.PHONY: check lint types imports test slow times mutants doctest examples docs smoke

check: lint types imports doctest examples docs smoke test slow

lint:
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .

types:
	$(PYTHON) -m pyright --pythonpath "$$($(PYTHON) -c 'import sys; print(sys.executable)')"

imports:
	$(PYTHON) -c "from importlinter.cli import lint_imports_command; lint_imports_command()" --no-cache

test:  ## the README's test command: float64 with annotations checked, then as users run
	$(PYTHON) -m pytest
	$(PYTHON) -m pytest --as-users

slow:  ## every case through every transform; hours
	$(PYTHON) -m pytest -m slow

times:  ## where the time of the tests goes, in processor seconds and compiled programs
	$(PYTHON) -m pytest -q -p tests.times
	$(PYTHON) -m pytest -q -p tests.times --as-users

mutants:  ## single mistakes put into operations, which the fast tests must find; minutes
	$(PYTHON) -m tests.mutants

doctest:  ## the examples in docstrings; those in README.md and docs/ are run by tests/test_docs.py
	$(PYTHON) -m pytest -q -n 0 --doctest-modules funcnet --ignore=funcnet/cli/_new

examples:
	for script in examples/*.py; do echo "== $$script" && $(PYTHON) "$$script" || exit 1; done

smoke:  ## every suite of the benchmarks at tiny sizes, with all peers that are installed; losses must agree
	$(PYTHON) -m benchmarks --smoke

docs:  ## builds the site, then looks at each of its pages in a browser, where there is one
	$(PYTHON) -m sphinx -W --keep-going -q -b html docs docs/_build/html
	$(PYTHON) -m pytest -q -n 0 tests/site.py
