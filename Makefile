# The set-up on a fresh machine: `make train` and `make test` need Python >= 3.10 with venv and a
# C++ compiler, and bring the rest into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help train test test-slow test-matrix bench docs lint format release clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

train: $(VENV)/installed ## train on the built-in data: SupOnly against the full method
	$(BIN)/cac-ext compare synthetic

# PASSIVE: waiting threads sleep instead of spinning, or tests crawl when the cores are shared.
WORKERS ?= 2
PYTEST := OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test: $(VENV)/installed ## run the tests, in WORKERS=2 processes
	$(PYTEST) -m "not slow"

test-slow: $(VENV)/installed ## run the longer tests too
	$(PYTEST)

test-matrix: ## build and test with Python 3.10 to 3.14, torch 2.11 to the newest; see MATRIX=--help
	$(PYTHON) .ci/matrix.py $(MATRIX)

# The budget counts all that is measured; with the start and the end it is less than 3 minutes.
bench: $(VENV)/installed ## time and memory of the loss against its rivals, in less than 3 minutes
	$(BIN)/python -m benchmarks loss --time-budget 120

docs: $(VENV)/docs ## build the documentation into build/site; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

lint: $(VENV)/linters $(VENV)/installed ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh' | xargs $(BIN)/clang-format --dry-run -Werror

format: $(VENV)/linters ## rewrite files in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh' | xargs $(BIN)/clang-format -i

release: $(VENV)/dependencies ## build, check and try the packages of a release; uploads nothing
	$(BIN)/python -m pip install --group release
	$(BIN)/python .ci/release.py $(RELEASE)

clean: ## remove the environment and everything built
	rm -rf $(VENV) build dist *.egg-info cac_ext/_C*.so cac_ext/build_config.json

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "cac_ext needs Python >= 3.10")'
	$(PYTHON) -m venv $(VENV) || (echo "The venv module is missing; on Debian or Ubuntu: apt-get install python3-venv" && exit 1)
	$(BIN)/python -m pip install --upgrade 'pip>=25.1'

# torch first: the extension is built against the very torch it will run with.
$(VENV)/dependencies: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --group build
	touch $@

SOURCES := $(shell find csrc -type f) CMakeLists.txt setup.py
$(VENV)/installed: $(VENV)/dependencies $(SOURCES)
	$(BIN)/python -m pip install --no-build-isolation -e '.[train,bench,test]'
	touch $@

$(VENV)/linters: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --group lint
	touch $@

$(VENV)/docs: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --group docs
	touch $@
