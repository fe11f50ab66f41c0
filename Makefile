# On a machine with Python 3.11 or later and make: `make demo` sets up and shows the whole thing, `make test` sets up and
# tests, `make test-all` runs every test. Everything is installed into .venv; scores are cached in ~/.cache/dfkd, or
# where DFKD_CACHE says.
PYTHON ?= python3
BIN := .venv/bin
# tests start many processes: what one compiles, the others read, also where the environment says otherwise
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo test test-all test-distributed same check docs setup clean

demo: setup
	$(BIN)/dfkd demo --out demo

PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

# all tests but those that take 10 seconds or more: benchmark scripts, whole demos, several processes
test: setup
	$(PYTEST) -m 'not slow'

test-all: setup
	$(PYTEST)

# the tests that start several processes, with one thread each; test-all runs them, too
test-distributed: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 0 tests/distributed

# does the working tree compute the same bytes as a revision?
BASE ?= HEAD
same: setup
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/reliability/same.py $(BASE)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md docs dfkd benchmarks pipelines

# the pages of docs/ as a site, in an environment that has nothing but the builder; a broken link is an error
docs: .venv-docs/ready
	.venv-docs/bin/mkdocs build --strict

.venv-docs/ready: pyproject.toml
	$(PYTHON) -m venv .venv-docs
	$(PYTHON) -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['docs'])" \
	  | xargs .venv-docs/bin/pip install --quiet --disable-pip-version-check
	touch $@

setup: .venv/ready

# uv, because it finds matching builds of torch and torchvision; its own lock file is not kept
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv .venv-docs demo build site *.egg-info
